"""A model of the Hub is taken from the Hub's cache; one that cannot be downloaded is an error before the run starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def ask(repo_root: Path, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    # The client reads its settings when it is imported.
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "recipes/models/hub_model.py", "--name", name]
    return subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=60)


def test_a_model_in_the_cache_needs_no_network(repo_root: Path, tmp_path: Path) -> None:
    # huggingface_hub's documented layout of its cache
    model = tmp_path / "hub/models--some--model"
    folder = model / "snapshots/0123456789abcdef0123456789abcdef01234567"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs/main").write_text(folder.name)
    done = ask(repo_root, tmp_path, "some/model")
    assert (done.returncode, done.stdout) == (0, f"{folder}\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/model", "not a local folder and could not be downloaded from the Hugging Face Hub ("),
        ("models", "neither a local folder nor OWNER/NAME"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_an_error(repo_root: Path, tmp_path: Path, name: str, message: str) -> None:
    done = ask(repo_root, tmp_path, name)
    assert done.returncode == 2
    assert f"error: MODEL_PATH={name} is " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
