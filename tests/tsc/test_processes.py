"""What the kernel keeps a process from, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tsc.processes import landlock_version

TRIES_TO_WRITE = """
import os, sys
from pathlib import Path
from tsc.processes import forbid_writing
folder = Path(sys.argv[1])
memory = os.memfd_create("memory")
with (folder / "open.txt").open("w") as already_open:
    assert forbid_writing()
    already_open.write("open")
os.write(memory, b"memory")
os.write(os.open(os.devnull, os.O_WRONLY), b"nothing")
assert (folder / "kept.txt").read_text() == "kept"
for forbidden in (
    lambda: (folder / "kept.txt").open("w"),
    lambda: (folder / "new.txt").open("w"),
    lambda: (folder / "new").mkdir(),
    lambda: (folder / "kept.txt").unlink(),
    lambda: (folder / "kept.txt").rename(folder / "moved.txt"),
    lambda: os.truncate(folder / "kept.txt", 0),
):
    try:
        forbidden()
    except PermissionError:
        continue
    sys.exit("it was allowed")
sys.exit(os.system(f"touch {folder}/child.txt") == 0)
"""


@pytest.mark.skipif(landlock_version() < 3, reason="this kernel has no Landlock, or one that lets files be truncated")
def test_a_process_that_may_not_write_changes_nothing_by_name_and_nor_do_its_children(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    subprocess.run([sys.executable, "-c", TRIES_TO_WRITE, tmp_path], check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept.txt": "kept", "open.txt": "open"}


def test_a_process_with_a_limit_gets_no_more_memory() -> None:
    program = "from tsc.processes import limit_memory; limit_memory(1 << 30); bytearray(2 << 30)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "MemoryError"
