"""Bad knobs are refused with value, bound and remedy, before anything expensive starts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from recipes.preflight.check_run import check_batches, check_decisions, check_number, check_parquet
from tsc.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "least", "whole", "above"), [("x", 1, True, False), ("1", 2, True, False), ("0", 0, False, True)]
)
def test_a_number_out_of_bounds_is_refused(text: str, least: float, whole: bool, above: bool) -> None:
    with pytest.raises(ConfigError, match=f"KNOB={text} .*choose a"):
        check_number("KNOB", text, least, whole, above)


def test_answers_that_do_not_fill_the_micro_batches_are_refused() -> None:
    check_batches(batch_prompts=8, rollout_n=4, micro_batch=32, num_devices=1)
    with pytest.raises(ConfigError, match="36 answers, 36 a worker, are no multiple of the micro-batch of 32"):
        check_batches(batch_prompts=9, rollout_n=4, micro_batch=32, num_devices=1)
    with pytest.raises(ConfigError, match="evenly among 3 workers"):
        check_batches(batch_prompts=8, rollout_n=4, micro_batch=8, num_devices=3)


def test_missing_broken_and_foreign_parquet_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    with pytest.raises(ConfigError, match="does not exist"):
        check_parquet(file, "train", 1)
    file.write_text("no parquet")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        check_parquet(file, "train", 1)
    pd.DataFrame({"prompt": ["x"]}).to_parquet(file)
    with pytest.raises(ConfigError, match="lacks the column data_source, reward_model"):
        check_parquet(file, "train", 1)


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sft_train.parquet"
    pd.DataFrame({"messages": ["x"] * 3}).to_parquet(file)
    assert check_parquet(file, "sft", 3) == 3
    with pytest.raises(ConfigError, match="3 rows, fewer than one batch of 4"):
        check_parquet(file, "sft", 4)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("HARDWARE", "h2o", "HARDWARE=h2o is unknown"),
        ("MODEL_PATH", "no/such/model", "no/such/model"),
        ("DATA", "no/such/data", "DATA=no/such/data does not exist"),
        ("BATCH_PROMPTS", "7", "no multiple of the micro-batch"),
        ("ROLLOUT_N", "1", "ROLLOUT_N=1 is too small"),
        ("SFT", "maybe", "SFT=maybe is unknown"),
    ],
)
def test_the_launcher_stops_at_once_on_a_bad_knob(
    repo_root: Path, tmp_path: Path, knob: str, value: str, message: str
) -> None:
    environment = os.environ | {"HARDWARE": "cpu", "RUNS": str(tmp_path), knob: value}
    done = subprocess.run(
        ["bash", "scripts/train_grpo.sh"], cwd=repo_root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "==" not in done.stdout


def ground_truth_rows(folder: Path, texts: list[str]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "train.parquet"
    pq.write_table(pa.table({"reward_model": [{"style": "rule", "ground_truth": text} for text in texts]}), file)
    return file


def test_rows_that_no_stretch_can_be_played_from_are_named_before_the_run(tmp_path: Path) -> None:
    request = {
        "sample_id": "one", "dataset_dir": str(tmp_path), "junction_id": "A0", "state_file": "one.xml.gz",
        "state_sha256": None, "current_green_elapsed_s": 10.0, "min_green_s": 10, "max_green_s": 60,
        "green_extension_s": 5,
    }  # fmt: skip
    there = json.dumps({"request": request})
    missing = json.dumps({"request": request | {"state_file": "two.xml.gz"}})
    (tmp_path / "one.xml.gz").touch()
    check_decisions("4", ground_truth_rows(tmp_path, [there, there]))
    with pytest.raises(ConfigError, match=r"that of row 1 of .*two\.xml\.gz, does not exist"):
        check_decisions("4", ground_truth_rows(tmp_path, [there, missing]))
    with pytest.raises(ConfigError, match="row 0 of .* does not say how: ground_truth has no object 'request'"):
        check_decisions("4", ground_truth_rows(tmp_path, ['{"outcomes": null}']))
    check_decisions("1", ground_truth_rows(tmp_path, ['{"outcomes": null}']))


@pytest.mark.parametrize(
    ("text", "message"), [("33", "too large: .* at most 32"), ("0", "too small"), ("x", "not a number")]
)
def test_a_wrong_number_of_decisions_is_told_its_bounds(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_decisions(text, None)
