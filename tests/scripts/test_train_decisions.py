"""One real GRPO run with several decisions to an answer, through scripts/train_grpo.sh."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("verl")


def test_several_decisions_in_a_row_are_played_scored_and_trained_on(project: Any) -> None:
    launch = project.train(
        steps=2, RUN_NAME="decisions", DECISIONS="3", MODEL_PATH=str(project.run / "sft/merged"), SFT="no"
    )
    trained = launch.metrics.parent
    steps = [record["data"] for record in launch.records() if "reward/score/mean" in record["data"]]
    assert len(steps) == 2
    for step in steps:
        assert step["reward/num_decisions/mean"] == 3.0
        shares = [step[f"reward/{part}/mean"] for part in ("answer_yes", "answer_no", "format_invalid")]
        assert sum(shares) == pytest.approx(1.0)
        assert step["reward/outcome_from_sample/mean"] == 0.0 and step["reward/failed/sum"] == 0.0
        score = step["reward/traffic/mean"] + step["reward/format/mean"]
        assert step["reward/score/mean"] == pytest.approx(score)
        assert step["critic/score/mean"] == pytest.approx(score, abs=1e-6)
        # one update a step for all decisions: a second one would find another policy
        assert abs(step["actor/ppo_kl"]) < 1e-3 and step["actor/pg_clipfrac"] == 0.0
    assert any(step["critic/advantages/max"] > 0 for step in steps)
    log = (trained / "train.log").read_text()
    # 8 prompts × 4 answers × 3 decisions fill the update, so verl added no empty sequences
    assert "Upsampled batch" not in log and "Error in _run_prompt" not in log
    assert (trained / "merged/config.json").is_file()
