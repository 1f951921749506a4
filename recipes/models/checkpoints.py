"""The checkpoints of a training: verl's folders global_step_N, or checkpoint-N of recipes/dpo, and a tracker that names
the last one.

A kill can come at any moment. verl's PPO trainer empties the tracker before it writes it, so it may be found empty.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from tsc.files import write_atomically

TRACKER = "latest_checkpointed_iteration.txt"
SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


def latest_step(checkpoints: Path) -> int | None:
    """The step of the checkpoint that the tracker names. None without a tracker, or if that checkpoint is missing."""
    tracker = checkpoints / TRACKER
    text = tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else ""
    exists = any((checkpoints / f"{name}{text}").is_dir() for name in ("global_step_", "checkpoint-"))
    return int(text) if text.isdigit() and exists else None


def is_complete(folder: Path) -> bool:
    """Whether verl wrote the checkpoint to its end: the shards of all ranks, and after them the place in the data. All
    are zip archives, whose end shows that nothing is cut off."""
    files = list(folder.rglob("*.pt"))
    shards: dict[Path, set[tuple[int, int]]] = {}
    for path in files:
        if match := SHARD.fullmatch(path.name):
            shards.setdefault(path.parent, set()).add((int(match[1]), int(match[2])))
    return (
        bool(shards)
        and any(path.parent == folder and path.name.startswith("data") for path in files)
        and all(found == {(size, rank) for size, _ in found for rank in range(size)} for found in shards.values())
        and all(zipfile.is_zipfile(path) for path in files)
    )


def mend_tracker(checkpoints: Path) -> str | None:
    """Repair a tracker that a kill has cut off: let it name the newest complete checkpoint, or remove it.

    Returns a sentence for the user, None if there was nothing to repair.
    """
    tracker = checkpoints / TRACKER
    if not tracker.is_file() or latest_step(checkpoints) is not None:
        return None
    steps = sorted(int(path.name.rpartition("_")[2]) for path in checkpoints.glob("global_step_*"))
    for step in reversed(steps):
        if is_complete(checkpoints / f"global_step_{step}"):
            write_atomically(tracker, str(step).encode())
            return f"{tracker} was cut off by a kill: it now names step {step}, the newest complete checkpoint"
    tracker.unlink()
    return f"{tracker} was cut off by a kill, and {checkpoints} has no complete checkpoint: the training begins anew"


def remove_older(checkpoints: Path) -> None:
    """Remove all checkpoints but the last. verl does not remove the one that a resumed training began from, because
    it counts only those of its own process. Without a tracker, checkpoints lie elsewhere, and nothing is removed."""
    last = latest_step(checkpoints)
    if last is not None:
        for older in checkpoints.glob("global_step_*"):
            if older.name != f"global_step_{last}":
                shutil.rmtree(older)
