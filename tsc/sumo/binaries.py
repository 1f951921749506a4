"""The programs of the eclipse-sumo package that make nets."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import sumo
from sumolib.miscutils import openz

from tsc.errors import ScenarioError
from tsc.files import strip_generated_comment, write_atomically

# programs of SUMO write their configuration as a comment ahead of the net element
_HEAD_BYTES = 1 << 18


def sumo_binary(name: str) -> Path:
    """The path of a program of the eclipse-sumo package. Raises ScenarioError if it is missing."""
    path = Path(sumo.SUMO_HOME, "bin", name)
    if not path.exists():
        raise ScenarioError(f"{path} is missing: install eclipse-sumo (scripts/setup_env.sh)")
    return path


@cache
def newest_net_version() -> tuple[int, ...]:
    """The version of the nets that the installed SUMO writes. It may not understand newer ones. Raises
    ScenarioError."""
    command = [str(sumo_binary("netgenerate")), "--grid", "--grid.number", "1", "--grid.attach-length", "10"]
    done = subprocess.run([*command, "--output-file", "stdout"], capture_output=True, text=True, check=False)
    version = _net_version(done.stdout)
    if version is None:
        raise ScenarioError(f"netgenerate does not say which nets it writes: {done.stderr.strip()}")
    return version


def check_net_version(net_file: Path) -> None:
    """Raises ScenarioError for a net of a newer SUMO, which the installed one may read wrongly without a word."""
    with openz(str(net_file), "rb") as stream:
        version = _net_version(stream.read(_HEAD_BYTES).decode(errors="replace"))
    newest = newest_net_version()
    if version and version > newest:
        raise ScenarioError(
            f"{net_file} is a net of version {'.'.join(map(str, version))}, but the installed SUMO writes "
            f"{'.'.join(map(str, newest))}: make the net again with this SUMO's netconvert, or use a newer eclipse-sumo"
        )


def _net_version(text: str) -> tuple[int, ...] | None:
    found = re.search(r'<net\s[^>]*?\bversion="(\d+)\.(\d+)"', text)
    return (int(found[1]), int(found[2])) if found else None


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
