"""Folders of runs as trainings leave them, made without training."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

YES, NO = '{"extend": "yes"}', '{"extend": "no"}'


def record(step: int, **more: float) -> str:
    """A line of verl's file logger, with some of the hundred metrics that it has."""
    data = {
        "reward/score/mean": 0.2 + step / 100, "reward/traffic/mean": 0.1, "reward/answer_yes/mean": 0.5,
        "actor/kl_loss": 0.01 * step, "response_length/mean": 9.0, "timing_s/gen": 1.5, "timing_s/step": 4.0,
    }  # fmt: skip
    return json.dumps({"step": step, "data": data | more}) + "\n"


def sample(step: int, answers: Sequence[tuple[str, float]], part: str = "train", prompt: str = "queue north 4") -> str:
    """A line of samples.jsonl. answers: text and traffic part of each."""
    return (
        json.dumps(
            {
                "step": step, "part": part, "prompt": prompt, "sample_id": f"four_way/{step}",
                "outcomes": {"yes": 31.0, "no": 42.5},
                "answers": [{"text": text, "traffic": traffic, "score": traffic + 0.1} for text, traffic in answers],
            }
        )
        + "\n"
    )  # fmt: skip


def make_run(
    runs: Path, name: str, lines: Iterator[str] | Sequence[str], *, state: str, algorithm: str = "grpo"
) -> Path:
    """The folder of a training that is running, finished, crashed or stopped."""
    folder = runs / name / algorithm
    (folder / "metrics").mkdir(parents=True)
    (folder / "metrics" / "20260102T030405.jsonl").write_text("".join(lines))
    log = "(TaskRunner pid=1) ReplayError: state 17 of junction 'C' is gone\n" if state == "crashed" else "step 1\n"
    (folder / "train.log").write_text(log)
    (folder / "run.json").write_text(json.dumps({"run": name, "steps": 25}))
    if state == "finished":
        (folder / "exported_step").write_text("25\n")
    if state == "running":
        lock(folder, os.getpid())
    return folder


def lock(folder: Path, pid: int) -> None:
    """As tsc.files.folder_lock does it."""
    (folder / ".lock").write_text(f"process {pid} on {socket.gethostname()} (since 2026-01-02: python)\n")


def logs_of(project: str, run: str) -> list[dict[str, Any]]:
    """What trackio would draw."""
    from trackio.sqlite_storage import SQLiteStorage

    found: list[dict[str, Any]] = SQLiteStorage.get_logs(project, run)
    return found
