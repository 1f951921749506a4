"""All answers to a prompt come from one agent loop: equal ones are scored once, and each is a row of its own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from recipes.verl_plugins.group_rollout import GroupLoopWorker
from recipes.verl_plugins.loaded_adapter import remember_loaded_adapter

YES, NO, ENDLESS = [5, 6], [5, 7], [5, 5, 5, 5, 5]
PARTS = {"score": 0.5, "audited": 1.0, "answer_yes": 1.0}


class Worker(GroupLoopWorker):
    """Keeps what it would have scored and stored."""

    def __init__(self) -> None:
        self.processor = None
        self.rollout_config = SimpleNamespace(response_length=4)
        self.scored: list[list[int]] = []
        self.stored: list[AgentLoopOutput] = []
        self.partition = ""

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict[str, Any]) -> None:
        self.scored.append(outputs[-1].response_ids)
        outputs[-1].reward_score = float(outputs[-1].response_ids[1])
        outputs[-1].extra_fields["reward_extra_info"] = dict(PARTS)

    async def _put(self, answers: list[AgentLoopOutput], partition: str, kwargs: dict[str, Any]) -> None:
        self.stored, self.partition = answers, partition


def rollout(others: list[tuple[list[int], list[float] | None]]) -> Worker:
    first = AgentLoopOutput(
        prompt_ids=[1, 2, 3],
        response_ids=YES,
        response_mask=[1, 1],
        response_logprobs=[-0.1, -0.2],
        metrics=AgentLoopMetrics(),
        extra_fields={"others": others, "min_global_steps": 3},
    )
    worker = Worker()
    asyncio.run(worker._agent_loop_postprocess(first, validate=False, uid="u", session_id=0))
    return worker


def test_equal_answers_are_scored_once_and_counted_once() -> None:
    worker = rollout([(NO, [-0.1, -1.0]), (YES, [-0.1, -0.3]), (YES, [-0.1, -0.2])])
    assert worker.scored == [YES, NO]
    assert [answer.response_ids for answer in worker.stored] == [YES, NO, YES, YES]
    assert [answer.reward_score for answer in worker.stored] == [6.0, 7.0, 6.0, 6.0]
    parts = [answer.extra_fields["reward_extra_info"] for answer in worker.stored]
    assert [each["audited"] for each in parts] == [1.0, 1.0, 0.0, 0.0]
    assert [each["answer_yes"] for each in parts] == [1.0] * 4
    # each keeps the log-probs that it was drawn with
    assert [answer.response_logprobs for answer in worker.stored][2] == [-0.1, -0.3]
    assert worker.partition == "train"
    assert all(answer.extra_fields["min_global_steps"] == 3 for answer in worker.stored)


def test_an_endless_answer_is_cut_as_verl_cuts_it() -> None:
    worker = rollout([(ENDLESS, [-0.1] * 5)])
    cut = worker.stored[1]
    assert (len(cut.response_ids), cut.response_mask, len(cut.response_logprobs or [])) == (4, [1] * 4, 4)


def test_one_answer_to_a_prompt_is_one_row() -> None:
    worker = rollout([])
    assert [answer.response_ids for answer in worker.stored] == [YES]


def test_the_engine_is_asked_for_its_adapter_until_it_has_one() -> None:
    asked: list[int] = []

    class Engine:
        async def list_loras(self) -> set[int]:
            asked.append(len(asked))
            return {123} if len(asked) > 1 else set()

    engine = Engine()
    for _ in range(2):
        remember_loaded_adapter(engine)
    loaded = [asyncio.run(engine.list_loras()) for _ in range(4)]
    assert loaded == [set(), {123}, {123}, {123}]
    assert len(asked) == 2
