"""A real GRPO run on the CPU through scripts/train_grpo.sh, which ends well."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recipes.models.checkpoints import latest_step
from recipes.models.model_card import read_card
from tests.hand_made_student import write_longest_queue_student
from tests.scripts.exported import check_exported

REWARD_PARTS = {
    "reward/score/mean", "reward/traffic/mean", "reward/format_exact/mean", "reward/format_invalid/mean",
    "reward/answer_yes/mean", "reward/answer_no/mean", "reward/tie/mean", "reward/outcome_from_sample/mean",
    "reward/outcome_from_cache/mean", "reward/outcome_from_replay/mean", "reward/audited/sum",
    "reward/audit_disagreed/sum", "reward/failed/sum",
}  # fmt: skip


def records(project: Any, stage: str) -> list[dict]:
    return [
        json.loads(line)
        for file in sorted((project.run / stage / "metrics").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def test_every_step_reports_the_parts_of_the_reward(project: Any) -> None:
    steps = [record for record in records(project, "grpo") if "reward/score/mean" in record["data"]]
    assert [record["step"] for record in steps] == [1, 2]
    for record in steps:
        assert record["data"].keys() >= REWARD_PARTS
        shares = [record["data"][f"reward/{part}/mean"] for part in ("answer_yes", "answer_no", "format_invalid")]
        assert sum(shares) == pytest.approx(1.0)
        assert record["data"]["reward/failed/sum"] == 0


def test_rollout_and_actor_agree_on_the_probabilities(project: Any) -> None:
    # With the rollout's log-probs as the old ones and one update a step, this KL is their difference and nothing else.
    for record in records(project, "grpo"):
        assert abs(record["data"].get("actor/ppo_kl", 0.0)) < 1e-3


def test_checkpoint_adapter_and_merged_model_are_kept(project: Any) -> None:
    grpo = project.run / "grpo"
    assert (grpo / "checkpoints/latest_checkpointed_iteration.txt").read_text() == "2"
    assert (grpo / "adapter/adapter_model.safetensors").is_file()
    assert (grpo / "merged/config.json").is_file()


def test_training_changed_the_weights_and_the_merged_model_equals_base_and_adapter(project: Any) -> None:
    check_exported(project.run / "grpo", project.run / "sft/merged", least_change=1e-3)
    cards = [read_card(project.run / folder) for folder in ("sft/merged", "grpo/merged", "grpo/adapter")]
    assert {(card.scenarios, card.num_stages) if card else None for card in cards} == {(("four_way",), (2, 2))}


def test_the_stages_say_what_they_did_and_where_it_lies(project: Any) -> None:
    output = next(project.runs.glob("output-test-grpo-2-*.txt")).read_text()
    for text in ("== Parquet", "== Model", "== SFT", "== GRPO", "== Merge", "Finished in", "grpo/merged", "wandb sync"):
        assert text in output
    assert "Traceback" not in output


def test_wandb_logs_offline_without_a_key_and_ends_in_order(project: Any) -> None:
    assert list(project.run.glob("grpo/wandb/offline-run-*/*.wandb"))
    assert list(project.run.glob("grpo/tensorboard/events*"))
    assert "Traceback" not in (project.run / "grpo/train.log").read_text()


def test_a_training_keeps_samples_of_each_step_and_says_what_it_is_made_of(project: Any) -> None:
    lines = [json.loads(line) for line in (project.run / "grpo/samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2}
    for line in lines:
        assert line["prompt"] and set(line["outcomes"]) == {"yes", "no"}
        assert len(line["answers"]) == 4
        assert all(-1.5 <= answer["score"] <= 1.5 and "traffic" in answer for answer in line["answers"])
    record = json.loads((project.run / "grpo/run.json").read_text())
    assert record["steps"] == 2
    assert len(record["dataset_sha256"]) == 64


def test_a_second_round_trains_on_states_of_the_policy_and_goes_on_after_a_kill(
    project: Any, short_scenario: Path
) -> None:
    knobs = {"ROUNDS": "2", "SCENARIO": str(short_scenario), "EPISODES": "1"}
    second = project.run / "grpo/round2"
    second.mkdir()
    # After two steps, the model's answers cannot be read yet, so it has no student. test_fit_student.py fits one.
    write_longest_queue_student(second / "student.json")
    launch = project.launch(2, "grpo", **knobs)
    launch.wait_for("checkpoint of the first step", lambda: latest_step(second / "checkpoints") == 1)
    launch.process.send_signal(signal.SIGTERM)
    launch.process.wait(60)

    output = project.train(2, "grpo", **knobs).output.read_text()
    for stage in ("== Data of round 2: already done", "== GRPO, round 2", "grpo/round2/merged"):
        assert stage in output
    samples = json.loads((second / "data/grpo_dataset.json").read_text())
    # another episode than the data before, mostly under the policy's student
    assert {sample["episode"] for sample in samples} == {1}
    assert "student" in {sample["behaviour"] for sample in samples}
    ids = {row["sample_id"] for row in pq.read_table(second / "parquet/train.parquet")["extra_info"].to_pylist()}
    assert ids & {sample["id"] for sample in samples}
    assert ids - {sample["id"] for sample in samples}
    # all unreadable answers score the same, so nothing is learned from them
    check_exported(second, project.run / "grpo/merged", least_change=-1.0)
