"""verl imports this (model.external_lib) in every process that knows the model: our engine and our vLLM server."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.replica import RolloutReplicaRegistry

from recipes.verl_plugins import answer_engine

__all__ = ["answer_engine"]


def _load_group_replica() -> type[Any]:
    from recipes.verl_plugins.group_server import GroupReplica  # imports vLLM

    return GroupReplica


RolloutReplicaRegistry.register("vllm", _load_group_replica)
