"""What a training was made of: noted in its folder, and in the configuration that every tracker gets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tsc.evaluation.reported import ReportedTraining
from tsc.files import REPO_ROOT, code_digest, sha256_of, write_atomically

RECORD_FILE = "run.json"
CODE = ("tsc", "reward", "data_tools", "recipes")

_WORKER = "actor_rollout_ref"
# The settings that the report of an evaluation shows, and their keys in verl's and TRL's configurations.
HYPERPARAMETERS = {
    "learning_rate": (f"{_WORKER}.actor.optim.lr", "optim.lr", "trl.learning_rate"),
    "batch_size": ("data.train_batch_size",),
    "answers_per_prompt": (f"{_WORKER}.rollout.n",),
    "temperature": (f"{_WORKER}.rollout.temperature",),
    "kl_loss_coef": (f"{_WORKER}.actor.kl_loss_coef",),
    "beta": ("trl.beta",),
    "lora_rank": (f"{_WORKER}.model.lora_rank", "model.lora_rank"),
    "seed": ("data.seed", "trl.seed"),  # verl's SFT has none
}
# The metrics that show a training's progress, and their names in the report.
PROGRESS = {"reward/score/mean": "mean score of the answers", "train/loss": "loss"}


def run_record(
    *, run: str, algorithm: str, model: Path, data: Path, steps: int | None, config: DictConfig
) -> dict[str, Any]:
    """data: the Parquet file. steps: of the whole training; None if the number of chats decides. config: composed.

    commit: of the repository, with -dirty after changes; None where the code is no checkout. code_sha256 holds for
    either.
    """
    return {
        "run": run,
        "algorithm": algorithm,
        "model": str(model),
        "data": str(data),
        "steps": steps,
        "hyperparameters": dict(_hyperparameters(config)),
        "dataset_sha256": sha256_of(data),
        "code_sha256": code_digest(*CODE),
        "commit": _commit(),
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())


def reported_training(model: Path) -> ReportedTraining | None:
    """The record and the progress of the training that made a model. None if the model is not in a training's folder.

    model: the folder of the merged model, or of the adapter.
    """
    folder = model.resolve().parent
    if not (folder / RECORD_FILE).is_file():
        return None
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_bytes())
    facts = record | record.pop("hyperparameters", {})
    measure, curve = _progress(folder)
    return ReportedTraining(
        facts={
            name.replace("_", " ").replace("sha256", "SHA-256"): str(value)[:12] if "sha256" in name else str(value)
            for name, value in facts.items()
            if value is not None
        },
        measure=measure,
        curve=curve,
    )


def _hyperparameters(config: DictConfig) -> Iterator[tuple[str, Any]]:
    for name, keys in HYPERPARAMETERS.items():
        values = [value for key in keys if (value := OmegaConf.select(config, key)) is not None]
        if values:
            yield name, values[0]


def _progress(folder: Path) -> tuple[str, dict[int, float]]:
    """The measure that the metrics have, and its value by step. A resumed training has the later value of a step."""
    found: dict[str, dict[int, float]] = {name: {} for name in PROGRESS}
    for file in sorted((folder / "metrics").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                step = json.loads(line)
            except json.JSONDecodeError:  # the line in which a training was killed
                continue
            for name in PROGRESS:
                if name in step["data"]:
                    found[name][int(step["step"])] = float(step["data"][name])
    name = next((name for name in PROGRESS if found[name]), next(iter(PROGRESS)))
    return PROGRESS[name], dict(sorted(found[name].items()))


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # an image without git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
