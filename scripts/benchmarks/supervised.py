"""Run a training for a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tsc.files import REPO_ROOT


def run_supervised(command: Sequence[object], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command in the repository. Returns its exit status, and its output and errors together.

    recipes/running/supervise.py ends the command and all its processes if this process ends.
    """
    supervisor = [sys.executable, "recipes/running/supervise.py", "--parent-pid", str(os.getpid()), "--"]
    process = subprocess.Popen(
        [*supervisor, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPO_ROOT,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.returncode, output
