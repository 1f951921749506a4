"""The shaping study: its variants, its table, and that a stopped study continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fast_grpo import GrpoSettings
from recipes.preflight.compose import compose
from reward.settings import load_settings
from shaping_study import REFERENCES, VARIANTS, chosen_variants, result_table
from tsc.errors import ConfigError


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_is_one_that_can_be_trained(variant: Any) -> None:
    if variant.changes is not None:
        load_settings(overrides=dict(GrpoSettings(**variant.changes).reward))


def test_the_default_is_what_train_grpo_does_with_its_tiny_model() -> None:
    ours = GrpoSettings()
    assert (ours.steps, ours.batch_prompts, ours.rollout_n, ours.decisions) == (25, 128, 4, 1)
    assert (ours.lora_rank, ours.lora_alpha, ours.learning_rate, ours.kl) == (32, 64, 1e-3, 0.3)
    assert (ours.normalise_std, ours.temperature) == (False, 1.0)
    # the labels of the SFT are balanced, GRPO's states are not
    assert compose("grpo", ["start=tiny"]).start.balance == "sft"
    assert not ours.balance


def test_an_unknown_variant_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'filter_groups'"):
        chosen_variants(["filter_group"])


def test_the_table_pairs_each_variant_with_the_reference_by_training_seed() -> None:
    def run(variant: str, seed: int, *queues: float) -> dict[str, Any]:
        hours = {str(701 + i): {"mean_queue_veh": queue} for i, queue in enumerate(queues)}
        return {"variant": variant, "seed": seed, "hours": hours, "metrics": {"greedy_yes": 0.25}}

    runs = [
        run(REFERENCES["decision"], 1, 1.0, 2.0),
        run(REFERENCES["decision"], 2, 2.0, 3.0),
        run("kl_0", 2, 2.5, 3.5),
        run("kl_0", 1, 2.0, 2.0),
        # without a partner: it counts in the mean and not in the difference
        run("kl_0", 3, 9.0, 9.0),
    ]
    table, rows = result_table("decision", runs, "four_way")
    row = next(row for row in rows if row["name"] == "mean queue, kl_0")
    assert row["value"] == pytest.approx((2.0 + 3.0 + 9.0) / 3)
    assert row["paired_difference"] == pytest.approx((0.5, 0.5, 0.5))
    line = next(line for line in table.splitlines() if line.startswith("| kl_0 "))
    assert "+0.500 [+0.500, +0.500]" in line
    assert "25 %" in line


@pytest.mark.slow
def test_a_study_ends_with_a_table_and_a_second_call_repeats_nothing(
    repo_root: Path, small_dataset: Path, short_scenario: Path, tmp_path: Path
) -> None:
    def call(script: str, *arguments: object) -> str:
        command = [sys.executable, str(repo_root / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data, model, out = tmp_path / "parquet", tmp_path / "tiny", tmp_path / "study"
    call("data_tools/json_to_parquet.py", "--input", small_dataset, "--output", data, "--ties", "keep")
    call("recipes/models/tiny_model.py", "--texts", data / "sft_train.parquet", "--out", model, "--hidden", 32)
    study = [
        "scripts/studies/shaping_study.py",
        "--data",
        data,
        "--start",
        model,
        "--scenario",
        short_scenario,
        "--out",
        out,
    ]
    # a model with random weights never gives a readable answer; whole answers allow that
    study += ["--variants", "start", "format_graded", "--seeds", 1, "--steps", 1, "--hours", 701]
    first = call(*study, "--json", tmp_path / "rows.json")
    assert "| format_graded |" in first
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == ["mean queue, start", "mean queue, format_graded"]
    assert all(set(row) >= {"name", "value", "unit", "beside", "ratio", "must_reach", "ok"} for row in rows)

    # a kill in the middle of a line
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"variant": "format_gra')
    again = call(*study)
    assert "2 of 2 runs are there already" in again
    assert first.partition("four_way, hours")[2] == again.partition("four_way, hours")[2]
