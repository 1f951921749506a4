"""What the tests of the launchers share: a real, small run of scripts/train_grpo.sh that has ended well."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass
class Launch:
    """A started scripts/train_grpo.sh and what is known of it."""

    process: subprocess.Popen[str]
    output: Path
    metrics: Path
    files_before: set[Path]

    def records(self) -> list[dict]:
        new = sorted(set(self.metrics.glob("*.jsonl")) - self.files_before)
        return [json.loads(line) for file in new for line in file.read_text().splitlines()]

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float = 800) -> None:
        """Fails if the launch ends before. One that is late is ended, so that it does not slow down other tests."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output.read_text()}"
            if time.monotonic() >= deadline:
                self.process.terminate()
                self.process.wait()
                raise AssertionError(f"no {what} after {timeout_s} s:\n{self.output.read_text()}")
            time.sleep(0.5)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass
class Project:
    root: Path
    runs: Path
    data: Path

    @property
    def run(self) -> Path:
        return self.runs / "test"

    def launch(self, steps: int, script: str = "grpo", *overrides: str, **knobs: str) -> Launch:
        environment = os.environ | {
            "RUNS": str(self.runs), "RUN_NAME": "test", "DATA": str(self.data), "HARDWARE": "cpu", "WANDB": "offline",
            "STEPS": str(steps), "SAVE_EVERY": "1", "BATCH_PROMPTS": "8", "ROLLOUT_N": "4", "MICRO_BATCH": "8",
            "SFT_BATCH_CHATS": "8", "SFT_EPOCHS": "4", "LEARNING_RATE": "1e-2", "EVAL_SEEDS": "0",
            "CXX": "/no/compiler",  # a training on a CPU needs none
        } | knobs  # fmt: skip
        output = self.runs / f"output-{environment['RUN_NAME']}-{script}-{steps}-{time.monotonic_ns()}.txt"
        metrics = self.runs / environment["RUN_NAME"] / script / "metrics"
        before = set(metrics.glob("*.jsonl"))
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", f"scripts/train_{script}.sh", *overrides],
                cwd=self.root,
                env=environment,
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,  # a group of its own, as in a terminal
            )
        return Launch(process, output, metrics, before)

    def train(self, steps: int, script: str = "grpo", *overrides: str, **knobs: str) -> Launch:
        """A launch that has ended well."""
        launch = self.launch(steps, script, *overrides, **knobs)
        try:
            status = launch.process.wait(timeout=800)
        finally:
            launch.process.terminate()
        log = launch.metrics.parent / "train.log"
        assert status == 0, launch.output.read_text() + (log.read_text()[-5000:] if log.is_file() else "")
        return launch


@pytest.fixture(scope="session")
def project(repo_root: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of two steps that has ended well."""
    project = Project(repo_root, tmp_path_factory.mktemp("runs"), small_dataset)
    project.train(steps=2)
    return project
