"""What the replay buffer reports of the rewards, and that it filters groups where verl is told to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transfer_queue
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipes.verl_plugins.replay_buffer import FastReplayBuffer, is_one_sided, reward_part_metrics
from tsc.errors import ReplayError


def answers(yes: int, no: int, unreadable: int = 0) -> list[Mapping[str, float]]:
    return (
        [{"answer_yes": 1.0, "answer_no": 0.0}] * yes
        + [{"answer_yes": 0.0, "answer_no": 1.0}] * no
        + [{"answer_yes": 0.0, "answer_no": 0.0}] * unreadable
    )


@pytest.mark.parametrize(
    ("yes", "no", "unreadable", "expected"),
    [(96, 4, 0, True), (4, 96, 0, True), (95, 5, 0, False), (50, 50, 0, False), (0, 10, 90, True), (0, 0, 9, False)],
)
def test_a_batch_is_one_sided_where_nearly_all_readable_answers_are_the_same(
    yes: int, no: int, unreadable: int, expected: bool
) -> None:
    assert is_one_sided(answers(yes, no, unreadable)) is expected


def test_a_users_reward_function_may_have_other_parts_or_none() -> None:
    assert not is_one_sided([{}, {"acc": 1.0}])
    assert reward_part_metrics([{}, {}]) == {}
    parts: list[Mapping[str, Any]] = [{"acc": 1.0, "why": "short", "bonus": 2}, {"acc": 0.0, "why": "long"}]
    assert reward_part_metrics(parts) == {"reward/acc/mean": 0.5}


def built_by_verl(repo_root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """The replay buffer that verl's trainer makes of recipes/grpo.yaml."""
    monkeypatch.chdir(repo_root)
    with initialize_config_dir(str(repo_root / "recipes"), version_base=None):
        config = compose("grpo", overrides=["data.train_batch_size=32", *overrides])
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)  # its constructor would start Ray
    trainer.config = config
    trainer.trainer_mode = "sync"
    return trainer._build_replay_buffer()


def test_verl_builds_our_replay_buffer_which_filters_nothing_by_default(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = built_by_verl(repo_root, monkeypatch)
    assert isinstance(buffer, FastReplayBuffer)
    assert buffer.filter_groups_metric is None


def test_filter_groups_reaches_the_replay_buffer(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = built_by_verl(
        repo_root,
        monkeypatch,
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=traffic",
        "algorithm.filter_groups.max_inflight_gen_batches=2",
    )
    assert buffer.filter_groups_metric == "traffic"
    assert (buffer.train_batch_size, buffer.gen_batch_size, buffer.max_inflight_gen_batches) == (32, 1, 2)


def test_training_reports_for_how_many_steps_the_policy_has_given_one_answer(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = built_by_verl(repo_root, monkeypatch)
    batches = [answers(50, 50), answers(2, 98), answers(0, 100), answers(97, 3), answers(60, 40), answers(0, 9)]
    reported = [buffer._reward_metrics(batch)["reward/one_sided_steps"] for batch in batches]
    assert reported == [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]


@pytest.mark.parametrize("partition", ["train", "val"])
def test_a_prompt_whose_answers_could_not_all_be_scored_ends_the_training(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, partition: str
) -> None:
    """As verl's agent loop leaves it in the queue: the status of the prompt, and the one answer that was scored."""
    buffer = built_by_verl(repo_root, monkeypatch)
    left = {
        "a": {"is_prompt": True, "status": "failure", "global_steps": 1},
        "a_0_0": {"status": "success", "global_steps": 1},
    }
    monkeypatch.setattr(transfer_queue, "kv_list", lambda: {partition: left})
    if partition == "val":
        buffer._sync_metadata_from_transfer_queue()
        return
    with pytest.raises(ReplayError, match="the answers to 1 prompts could not all be generated and scored"):
        buffer.sample(global_steps=1, partition_id="train", batch_size=1)


def test_a_step_that_takes_long_says_once_what_it_waits_for(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = built_by_verl(repo_root, monkeypatch)
    buffer.poll_interval = 0.0
    buffer.running_keys["train"], buffer.finished_keys["train"] = {"a", "b"}, {"c"}
    buffer._wait_for_next_poll("train", time.time())
    assert capsys.readouterr().out == ""
    for _ in range(2):
        buffer._wait_for_next_poll("train", time.time() - 100)
    said = "waiting for the answers to 2 of 3 prompts: 2 are being answered or replayed, 0 have not begun\n"
    assert capsys.readouterr().out == said
    buffer.running_keys["train"] = {"a"}
    monkeypatch.setattr(
        "recipes.verl_plugins.replay_buffer.replays_under_way", lambda: [(41.2, "states/9.xml.gz"), (2.0, "b")]
    )
    buffer._wait_for_next_poll("train", time.time() - 100)
    said = capsys.readouterr().out
    assert "to 1 of 2 prompts" in said and "oldest replays: states/9.xml.gz for 41 s, b for 2 s" in said


def test_a_policy_that_says_one_thing_is_not_asked_for_ever(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its groups come back with the same score as often as they are replaced; here two of two prompts at a time."""
    buffer = built_by_verl(
        repo_root,
        monkeypatch,
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=reward",
        "algorithm.filter_groups.max_num_gen_batches=3",
        "data.train_batch_size=2",
    )
    queue: dict[str, dict[str, Any]] = {}
    asked = 0

    def ask(num_prompts: int) -> None:
        nonlocal asked
        for _ in range(num_prompts):
            asked += 1
            queue[f"{asked}"] = {"is_prompt": True, "status": "finished", "global_steps": 1}
            queue.update({f"{asked}_{answer}_0": {"status": "success", "global_steps": 1} for answer in range(4)})

    def clear(keys: Sequence[str], partition_id: str) -> None:
        for key in keys:
            del queue[key]

    monkeypatch.setattr(buffer, "refill_fn", ask)
    monkeypatch.setattr(transfer_queue, "kv_list", lambda: {"train": dict(queue)})
    monkeypatch.setattr(transfer_queue, "kv_clear", clear)
    monkeypatch.setattr(
        transfer_queue, "kv_batch_get", lambda keys, **_: {"rm_scores": [torch.tensor([0.0, 0.3])] * len(keys)}
    )
    ask(2)
    with pytest.raises(
        ReplayError, match="all answers to 6 prompts of a step had the same reward.*max_num_gen_batches"
    ):
        buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    assert asked == 6


def test_parts_of_the_reward_are_averaged_and_rare_events_counted() -> None:
    answers = [{"score": 1.0, "tie": 0.0, "failed": 1.0}, {"score": 0.0, "tie": 0.0, "failed": 1.0}]
    assert reward_part_metrics(answers) == {"reward/score/mean": 0.5, "reward/tie/mean": 0.0, "reward/failed/sum": 2.0}


def test_an_empty_batch_has_no_reward_metrics() -> None:
    assert reward_part_metrics([]) == {}
