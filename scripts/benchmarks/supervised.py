"""Run a program for a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import with_benchmarks
from tsc.errors import TscError
from tsc.files import REPO_ROOT


def run_supervised(command: Sequence[object], **environment: object) -> None:
    """Run a command in the repository. Raises TscError with the end of its output if it fails.

    recipes/running/supervise.py ends the command and all its processes if this process ends.
    """
    supervisor = [sys.executable, "recipes/running/supervise.py", "--parent-pid", str(os.getpid()), "--"]
    process = subprocess.Popen(
        [*supervisor, *map(str, command)],
        env=with_benchmarks() | {name: str(value) for name, value in environment.items()},
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
    if process.returncode:
        program = " ".join(map(str, command[:2]))
        raise TscError(f"{program} ended with status {process.returncode}: {output.strip()[-2000:]}")
