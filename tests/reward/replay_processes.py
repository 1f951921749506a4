"""Replay servers and workers, found among all processes by the folder for temporary files that a test gave them."""

from __future__ import annotations

from pathlib import Path

import psutil


def replay_processes(folder: Path, module: str = "reward.workers.") -> list[psutil.Process]:
    """Those that run `module` and have `folder` as TMPDIR, or had it before recipes/running/supervise.py.

    Their `info["ppid"]` stays known when they have ended since.
    """
    found = []
    for process in psutil.process_iter(["ppid"]):
        try:
            is_one = any(name.startswith(module) for name in process.cmdline())
            given = process.environ() if is_one else {}
            if given.get("TSC_REPLAY_FOLDER", given.get("TMPDIR")) == str(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
