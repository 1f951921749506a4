"""One real DPO run on the CPU through scripts/train_dpo.sh: trained, exported, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from recipes.models.tiny_model import TinyModelSize, build_tiny_model

STEPS = 4


@dataclass
class Project:
    root: Path
    runs: Path
    data: Path
    model: Path

    @property
    def dpo(self) -> Path:
        return self.runs / "test/dpo"

    def start(self, output: Path, **knobs: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "RUNS": str(self.runs), "RUN_NAME": "test", "DATA": str(self.data), "MODEL_PATH": str(self.model),
            "SFT": "no", "HARDWARE": "cpu", "WANDB": "offline", "STEPS": str(STEPS), "SAVE_EVERY": "2",
            "BATCH_PROMPTS": "8", "LEARNING_RATE": "1e-2", "EVAL_SEEDS": "0", "OMP_NUM_THREADS": "1",
        } | knobs  # fmt: skip
        with output.open("w") as file:
            return subprocess.Popen(
                ["bash", "scripts/train_dpo.sh"], cwd=self.root, env=environment, stdout=file, stderr=file, text=True
            )

    def call(self, name: str, **knobs: str) -> tuple[int, str]:
        """Exit status and output."""
        output = self.runs / f"{name}.txt"
        process = self.start(output, **knobs)
        try:
            status = process.wait(timeout=280)
        finally:
            process.terminate()
        return status, output.read_text()

    def records(self) -> list[dict]:
        files = sorted((self.dpo / "metrics").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def project(repo_root: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that has ended well."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(repo_root / "data_tools/json_to_parquet.py"), "--input", str(small_dataset)]
    subprocess.run([*command, "--output", str(runs / "parquet")], check=True, timeout=120)
    build_tiny_model(runs / "parquet/sft_train.parquet", runs / "model", TinyModelSize(hidden=32, layers=2), seed=1)
    project = Project(repo_root, runs, runs / "parquet", runs / "model")
    status, output = project.call("first", VALIDATE_EVERY=str(STEPS))
    log = project.dpo / "train.log"
    assert status == 0, output + (log.read_text()[-5000:] if log.is_file() else "")
    return project


def test_every_step_is_in_the_metrics_and_the_loggers_wrote(project: Project) -> None:
    steps = [record for record in project.records() if "train/loss" in record["data"]]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["data"]["train/rewards/margins"] > steps[0]["data"]["train/rewards/margins"]
    assert [record["step"] for record in project.records() if "val/loss" in record["data"]] == [STEPS]
    assert list(project.dpo.glob("tensorboard/events*"))
    assert list(project.dpo.glob("wandb/offline-run-*/*.wandb"))


def test_the_model_lies_where_the_other_trainings_put_theirs(project: Project) -> None:
    assert (project.dpo / "exported_step").read_text().strip() == str(STEPS)
    assert (project.dpo / "checkpoints/latest_checkpointed_iteration.txt").read_text() == str(STEPS)
    assert (project.dpo / "adapter/adapter_model.safetensors").is_file()
    assert (project.dpo / "merged/config.json").is_file()
    assert (project.dpo / "merged/tokenizer.json").is_file()


def test_the_stages_say_what_they_did(project: Project) -> None:
    output = (project.runs / "first.txt").read_text()
    for text in ("== Pairs", "ties left out", "== DPO", "loss", "== Merge", "Finished in", "dpo/merged", "wandb sync"):
        assert text in output
    assert "Traceback" not in output


def test_sigterm_leaves_no_process_and_the_same_command_resumes(project: Project) -> None:
    before = len(project.records())
    output = project.runs / "killed.txt"
    launch = project.start(output, STEPS="1000")
    deadline = time.monotonic() + 200
    while len(project.records()) <= before:
        assert launch.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.3)
    started = psutil.Process(launch.pid).children(recursive=True)
    launch.send_signal(signal.SIGTERM)
    assert launch.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(started, timeout=5)
    assert [process.cmdline() for process in alive] == []
    assert "the same command goes on from here" in output.read_text()
    assert project.records()[before]["step"] == STEPS + 1


def test_knobs_that_cannot_work_end_before_anything_is_made(project: Project) -> None:
    for knobs, cause in (
        ({"LORA_TARGETS": "q_prj"}, "did you mean 'q_proj'"),
        ({"NNODES": "2"}, "DPO runs on one machine"),
        ({"BETA": "0"}, "BETA=0 (trl.beta) is too small: choose a number above 0"),
    ):
        status, output = project.call("refused", RUN_NAME="refused", **knobs)
        assert status == 2
        assert cause in output
        assert not (project.runs / "refused").exists()
