"""The programs of the eclipse-sumo package that make nets."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sumo

from tsc.errors import ScenarioError
from tsc.files import strip_generated_comment, write_atomically


def sumo_binary(name: str) -> Path:
    """The path of a program of the eclipse-sumo package. Raises ScenarioError if it is missing."""
    path = Path(sumo.SUMO_HOME, "bin", name)
    if not path.exists():
        raise ScenarioError(f"{path} is missing: install eclipse-sumo (scripts/setup_env.sh)")
    return path


def write_net(program: str, options: Sequence[str], path: Path, *, what: str) -> None:
    """Write the net that `program` (netgenerate, netconvert) makes with these options.

    The time of day is taken out of the file: same options, same bytes. `what` is what the net belongs to, for the error
    message. Raises ScenarioError with the program's own message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tsc-net-") as folder:
        raw = Path(folder, "net.xml")
        done = subprocess.run(
            [str(sumo_binary(program)), "--output-file", str(raw), *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SUMO_HOME": sumo.SUMO_HOME},
        )
        if done.returncode != 0 or not raw.exists():
            raise ScenarioError(f"{program} cannot make the net of {what}: {done.stderr.strip()}")
        write_atomically(path, strip_generated_comment(raw.read_bytes()))
