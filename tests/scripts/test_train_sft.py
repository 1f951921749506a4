"""SFT through scripts/train_sft.sh: of an adapter, killed, gone on with, and exported; of a student's answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.scripts.exported import check_exported

EPOCHS = 12


@pytest.fixture(scope="module")
def sft(project: Any) -> tuple[list[dict], list[dict]]:
    """What a killed SFT had reported, and what the same command reported that ended it."""
    knobs = {
        "RUN_NAME": "sft-adapter", "MODEL_PATH": str(project.run / "tiny"), "DATA": str(project.run / "parquet"),
        "LORA_RANK": "4", "LORA_ALPHA": "8", "BATCH_CHATS": "8", "EPOCHS": str(EPOCHS),
    }  # fmt: skip
    launch = project.launch(0, "sft", **knobs)
    tracker = project.runs / "sft-adapter/sft/checkpoints/latest_checkpointed_iteration.txt"
    launch.wait_for("a checkpoint", tracker.is_file)
    started = launch.descendants()
    # A kill of everything that a terminal would kill. Nothing of the launch can clean up.
    os.killpg(launch.process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert [process.cmdline() for process in alive] == []
    killed = launch.records()
    return killed, project.train(0, "sft", **knobs).records()


def test_the_same_command_goes_on_after_the_last_checkpoint(project: Any, sft: tuple[list[dict], list[dict]]) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.ParquetFile(project.run / "parquet/sft_train.parquet").metadata.num_rows
    killed, resumed = ([record["step"] for record in records if "train/loss" in record["data"]] for records in sft)
    assert killed[0] == 1
    assert 1 < resumed[0] <= killed[-1] + 1
    assert resumed == list(range(resumed[0], rows // 8 * EPOCHS + 1))


def test_its_adapter_on_the_base_answers_as_the_merged_model(project: Any, sft: tuple[list[dict], list[dict]]) -> None:
    check_exported(project.runs / "sft-adapter/sft", project.run / "tiny", least_change=1e-3)


def test_a_student_s_answers_are_learned(project: Any, short_scenario: Path) -> None:
    import pyarrow.parquet

    knobs = {"RUN_NAME": "sft-student", "SCENARIO": str(short_scenario), "SFT_ANSWERS": "student", "SFT_CHATS": "64"}
    launch = project.train(0, "sft", **knobs, BATCH_CHATS="16", EPOCHS="1")
    losses = [record["data"]["train/loss"] for record in launch.records() if "train/loss" in record["data"]]
    assert len(losses) == 4
    run = project.runs / "sft-student"
    assert pyarrow.parquet.ParquetFile(run / "student_chats/sft_train.parquet").metadata.num_rows == 64
    assert (run / "sft/merged/config.json").is_file()
    again = project.train(0, "sft", **knobs, BATCH_CHATS="16", EPOCHS="1").output.read_text()
    assert f"== Chats: already done, {run / 'student_chats'}" in again
