"""The artifacts of a training in wandb."""

import os
import subprocess
import sys
from pathlib import Path

from recipes.running.environment import log_environment


def test_evaluation_and_adapter_are_artifacts_of_the_trainings_run(repo_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    (folder / "figures").mkdir(parents=True)
    for name in ("summary.csv", "results.json", "report.html", "figures/queue.png"):
        (folder / name).write_text(name)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").write_text("weights")
    environment = log_environment(tmp_path / "grpo", "demo-grpo", "offline", group="demo", tags=["grpo"])
    command = [sys.executable, "recipes/running/log_artifacts.py", "--eval", str(folder), "--project", "tsc-grpo"]
    command += ["--adapter", str(tmp_path / "adapter")]
    done = subprocess.run(command, cwd=repo_root, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = environment["WANDB_RUN_ID"]
    [log] = tmp_path.glob(f"grpo/wandb/offline-run-*-{run}/run-{run}.wandb")
    logged = log.read_bytes()
    for name in (f"evaluation-{run}", f"adapter-{run}", "summary.csv", "figures/queue.png"):
        assert name.encode() in logged
    waiting = [path for path in (tmp_path / "grpo/wandb/artifacts").rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in waiting if path.stat().st_size < 50) == [
        "figures/queue.png", "report.html", "results.json", "summary.csv", "weights",
    ]  # fmt: skip
