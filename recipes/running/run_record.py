"""What a training was made of: noted in its folder, and in the configuration that every tracker gets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tsc.files import REPO_ROOT, code_digest, sha256_of, write_atomically

RECORD_FILE = "run.json"
CODE = ("tsc", "reward", "data_tools", "recipes")


def run_record(*, run: str, algorithm: str, model: Path, data: Path, steps: int | None) -> dict[str, Any]:
    """data: the Parquet file. steps: of the whole training; None if the number of chats decides.

    commit: of the repository, with -dirty after changes; None where the code is no checkout. code_sha256 holds for
    either.
    """
    return {
        "run": run,
        "algorithm": algorithm,
        "model": str(model),
        "data": str(data),
        "steps": steps,
        "dataset_sha256": sha256_of(data),
        "code_sha256": code_digest(*CODE),
        "commit": _commit(),
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())


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
