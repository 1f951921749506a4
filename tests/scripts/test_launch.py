"""Of the launchers' shared parts what can be seen without a training."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        ([], ["global_step_12"]),
        (["trainer.max_actor_ckpt_to_keep=2"], ["global_step_12", "global_step_4", "global_step_8"]),
    ],
)
def test_the_checkpoint_that_a_resumed_training_began_from_goes_unless_more_were_asked_for(
    repo_root: Path, tmp_path: Path, overrides: list[str], left: list[str]
) -> None:
    for step in (4, 8, 12):
        (tmp_path / f"global_step_{step}/actor").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    command = 'set -euo pipefail; . scripts/launch.sh; remove_older_checkpoints "$@"'
    subprocess.run(["bash", "-c", command, "-", tmp_path, *overrides], cwd=repo_root, check=True, timeout=30)
    assert sorted(path.name for path in tmp_path.glob("global_step_*")) == left


def test_checkpoints_elsewhere_are_left_alone(repo_root: Path, tmp_path: Path) -> None:
    (tmp_path / "global_step_4").mkdir()
    command = 'set -euo pipefail; . scripts/launch.sh; remove_older_checkpoints "$@"; echo went on'
    done = subprocess.run(["bash", "-c", command, "-", tmp_path], cwd=repo_root, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, b"went on\n")
    assert (tmp_path / "global_step_4").is_dir()
