"""DECISIONS=K: the policy makes K consecutive decisions of the sample's junction, and all K get the stretch's score.

verl's V1 trainer lets an agent loop return several sequences: each is trained on its own, all with the reward of the
last. So every decision has the short prompt that a deployed policy gets at that moment, not a chat that grows, and the
advantage is taken over the answers of a group, not over their decisions
(verl/trainer/ppo/v1/utils.py:compute_advantage_for_multi_trajectories). That holds for algorithm.adv_estimator=grpo
only. Other estimators would treat the K sequences of one answer as K answers.

These keys of verl's belong together (scripts/train_grpo.sh sets them):

    actor_rollout_ref.rollout.agent.agent_loop_config_path=recipes/agent_loops.yaml
    actor_rollout_ref.rollout.agent.default_agent_loop=consecutive_decisions
    actor_rollout_ref.rollout.multi_turn.max_assistant_turns=K
    actor_rollout_ref.actor._target_=recipes.verl_plugins.decision_loop.DecisionActorConfig
    actor_rollout_ref.actor.ppo_mini_batch_size=K × data.train_batch_size       one update a step
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer
from verl.workers.config import FSDPActorConfig

from reward.compute_score import settings_for
from reward.ground_truth import GroundTruth, parse_ground_truth
from reward.stretch_source import ProgressWithOrigin, StretchSource
from tsc.errors import ConfigError
from tsc.junction.decision import Answer, parse_answer
from tsc.junction.prompt import OWN_PROMPT
from tsc.replays.stretch import MAX_DECISIONS


def num_decisions_of(config: Any) -> int:
    """K in the trainer's configuration. Raises ConfigError if it is out of bounds or does not suit the estimator."""
    key = "actor_rollout_ref.rollout.multi_turn.max_assistant_turns"
    number = OmegaConf.select(config, key)
    if not isinstance(number, int) or not 1 <= number <= MAX_DECISIONS:
        raise ConfigError(f"{key} is {number}: choose the number of decisions (DECISIONS), 1–{MAX_DECISIONS}")
    estimator = config.algorithm.adv_estimator
    if number > 1 and estimator != "grpo":
        raise ConfigError(
            f"algorithm.adv_estimator is {estimator} with {number} decisions to an answer: verl groups the sequences "
            "of an answer with grpo only; choose grpo, or DECISIONS=1"
        )
    return number


@dataclass
class DecisionActorConfig(FSDPActorConfig):
    """Lets a mini-batch hold all the decisions of a step. verl counts prompts and allows at most data.train_batch_size.

    decisions: sequences to an answer.
    """

    decisions: int = 1

    def validate(self, n_gpus: int, train_batch_size: int, model_config: Any = None) -> None:
        super().validate(n_gpus, train_batch_size * self.decisions, model_config)


class _Stretches:
    """What the loops of one process share: the client of the replay workers, and the threads that wait for them."""

    def __init__(self, config: Any) -> None:
        kwargs = OmegaConf.select(config, "reward.custom_reward_function.reward_kwargs") or {}
        settings = settings_for(OmegaConf.to_container(kwargs, resolve=True) if kwargs else {})
        self.num_decisions = num_decisions_of(config)
        self.source = StretchSource(
            settings, self.num_decisions, OmegaConf.select(config, "knobs.prompt", default=OWN_PROMPT)
        )
        # as many as the pool serves at a time
        self._threads = ThreadPoolExecutor(2 * settings.replay.num_workers, thread_name_prefix="stretch")

    async def play(self, truth: GroundTruth, answers: Sequence[Answer]) -> ProgressWithOrigin:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.source.play, truth, answers)


_lock = threading.Lock()
_stretches: _Stretches | None = None


def _stretches_for(config: Any) -> _Stretches:
    """The process's only one: verl starts its agent loop workers for one trainer, so there is one configuration."""
    global _stretches
    with _lock:
        if _stretches is None:
            _stretches = _Stretches(config)
        return _stretches


class DecisionLoop(AgentLoopBase):  # type: ignore[misc]  # verl has no types
    """One stretch of decisions. verl makes one of these for each answer to each prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stretches = _stretches_for(self.config)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> list[AgentLoopOutput]:
        """kwargs: the row. Only its ground truth is used; knobs.prompt makes every prompt, also the first.

        Raises what StretchSource.play raises. verl reports that and leaves the answer out.
        """
        truth = parse_ground_truth(kwargs["reward_model"]["ground_truth"])
        answers: list[Answer] = []
        outputs: list[AgentLoopOutput] = []
        waited_s = 0.0
        failed = 0.0
        while True:
            metrics: dict[str, float] = {}
            with simple_timer("tool_calls", metrics):
                reached = await self._stretches.play(truth, answers)
            waited_s += metrics["tool_calls"]
            failed = max(failed, reached.origin.failed)
            question, stretch = reached.progress.question, reached.progress.stretch
            if stretch is not None:
                break
            assert question is not None
            output = await self._answer(list(question.prompt), sampling_params, int(priority), metrics)
            outputs.append(output)
            answers.append(parse_answer(self.tokenizer.decode(output.response_ids, skip_special_tokens=True)))
        last = outputs[-1]
        last.metrics.compute_score = waited_s
        score = self._stretches.source.score(answers, stretch, replace(reached.origin, failed=failed))
        last.reward_score = score["score"]
        last.extra_fields["reward_extra_info"] = score
        return outputs

    async def _answer(
        self, messages: list[dict[str, str]], sampling_params: dict[str, Any], priority: int, metrics: dict[str, Any]
    ) -> AgentLoopOutput:
        prompt_ids = self.continuous_token_builder.build_initial_tokens(messages)
        if len(prompt_ids) > self.rollout_config.prompt_length:
            raise ConfigError(
                f"a prompt has {len(prompt_ids)} tokens, more than data.max_prompt_length="
                f"{self.rollout_config.prompt_length}: raise data.max_prompt_length"
            )
        with simple_timer("generate_sequences", metrics):
            said = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params, priority=priority
            )
        metrics["num_preempted"] = said.num_preempted if said.num_preempted is not None else -1
        response_ids = said.token_ids[: self.rollout_config.response_length]
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=[1] * len(response_ids),
            response_logprobs=said.log_probs[: len(response_ids)] if said.log_probs else None,
            num_turns=2,
            metrics=metrics,
            # verl's other loops set these, too
            extra_fields={**said.extra_fields, "turn_scores": [], "tool_rewards": []},
        )
