"""verl's vLLM server, which answers a prompt several times in one call: `n` among the sampling parameters."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from recipes.verl_plugins.loaded_adapter import remember_loaded_adapter


class GroupServer(vLLMHttpServer):  # type: ignore[misc]  # verl has no types
    """The further answers are in the first one's extra_fields: `others`, of (token ids, log-probs or None)."""

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **kwargs: Any
    ) -> TokenOutput:
        remember_loaded_adapter(self.engine)
        one = super().generate
        num_answers = sampling_params.pop("n", 1)
        if num_answers == 1:
            return await one(prompt_ids, sampling_params, request_id, **kwargs)
        # verl changes the parameters that it is given
        first, *others = await asyncio.gather(
            *(
                one(prompt_ids, dict(sampling_params), f"{request_id}-{number}", **kwargs)
                for number in range(num_answers)
            )
        )
        first.extra_fields["others"] = [(answer.token_ids, answer.log_probs) for answer in others]
        return first


class GroupReplica(vLLMReplica):  # type: ignore[misc]
    """Starts GroupServers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(GroupServer)
