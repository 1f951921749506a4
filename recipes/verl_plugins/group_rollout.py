"""verl's agent loops, with one request for all answers to a prompt, and one score for answers that are the same.

verl starts an agent loop, a request and a scoring for each answer. For answers of ten tokens from a small model that is
most of the time of a step. The keys that belong together are in recipes/policy_gradient.yaml:

    actor_rollout_ref.model.external_lib=recipes.verl_plugins.register
    actor_rollout_ref.rollout.agent.agent_loop_manager_class=recipes.verl_plugins.group_rollout.GroupLoopManager

An agent loop that makes several requests to an answer (DECISIONS) runs for each answer, as in verl.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import torch
import transfer_queue
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipes.verl_plugins.replay_buffer import COUNTED_PARTS

ONE_REQUEST = "single_turn_agent"


class GroupLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[misc]  # the class itself
    """Runs one agent loop for all answers to a prompt."""

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        if prompt["agent_name"] == ONE_REQUEST:
            rollout = self.config.actor_rollout_ref.rollout
            usual = rollout.val_kwargs.n if trajectory["validate"] else rollout.n
            sampling_params = sampling_params | {"n": prompt.get("__rollout_n__", usual)}
            prompt = prompt | {"__rollout_n__": 1}
        await super()._run_prompt(prompt, sampling_params, trajectory, trace)

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        if isinstance(output, list):
            await super()._agent_loop_postprocess(output, validate, **kwargs)
            return
        answers = [output, *(self._other(output, *other) for other in output.extra_fields.pop("others", []))]
        distinct: dict[tuple[int, ...], AgentLoopOutput] = {}
        for answer in answers:
            distinct.setdefault(tuple(answer.response_ids), answer)
        await asyncio.gather(*(self._compute_score([answer], kwargs) for answer in distinct.values()))
        for answer in answers:
            scored = distinct[tuple(answer.response_ids)]
            if answer is not scored:
                answer.reward_score = scored.reward_score
                parts = scored.extra_fields.get("reward_extra_info", {})
                # what is counted has happened once
                answer.extra_fields["reward_extra_info"] = parts | {
                    part: 0.0 for part in COUNTED_PARTS if part in parts
                }
        if self.processor is None:
            await self._put(answers, "val" if validate else "train", kwargs)
            return
        for number, answer in enumerate(answers):  # pictures and the like: verl's own way
            await super()._agent_loop_postprocess(answer, validate, **(kwargs | {"session_id": number}))

    async def _put(self, answers: list[AgentLoopOutput], partition: str, kwargs: dict[str, Any]) -> None:
        """All answers to a prompt at once, with the fields, keys and tags that verl gives each of them."""
        fields, tags = [], []
        for answer in answers:
            row = answer.as_dict() | kwargs
            input_ids = torch.cat([row["prompts"], row["responses"]])
            row |= {"loss_mask": row["response_mask"], "input_ids": input_ids, "multi_modal_inputs": {}}
            row["position_ids"] = torch.arange(len(input_ids))
            fields.append(row)
            steps = {key: row["extra_fields"].get(key) for key in ("min_global_steps", "max_global_steps")}
            tags.append(
                {
                    "status": "success",
                    "prompt_len": len(row["prompts"]),
                    "response_len": len(row["responses"]),
                    "seq_len": len(input_ids),
                    "global_steps": kwargs["global_steps"],
                    **steps,
                }
            )
        await transfer_queue.async_kv_batch_put(
            keys=[f"{kwargs['uid']}_{number}_0" for number in range(len(answers))],
            fields=list_of_dict_to_tensordict(fields),
            tags=tags,
            partition_id=partition,
        )

    def _other(self, first: AgentLoopOutput, token_ids: list[int], log_probs: list[float] | None) -> AgentLoopOutput:
        response_ids = token_ids[: self.rollout_config.response_length]
        return first.model_copy(
            update={
                "response_ids": response_ids,
                "response_mask": [1] * len(response_ids),
                "response_logprobs": log_probs[: len(response_ids)] if log_probs else None,
                "metrics": first.metrics.model_copy(),
                "extra_fields": dict(first.extra_fields),
            }
        )


class GroupLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """Starts GroupLoopWorkers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(GroupLoopWorker)
