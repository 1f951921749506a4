"""Files that appear whole or not at all, folders with one writer at a time, and SUMO files without the time of day."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tsc.errors import ConfigError

# The repository root, which holds configs/ and the packages.
REPO_ROOT = Path(__file__).resolve().parents[1]

LOCK_FILE = ".lock"
# between two looks at a lock that is waited for
_WAIT_S = 0.5

# SUMO's net and state files begin with a comment that holds the time of day. Without it, the same input gives the same
# bytes.
_GENERATED_COMMENT = re.compile(rb"<!-- generated on .*?-->\s*", re.DOTALL)


def strip_generated_comment(data: bytes) -> bytes:
    """Return the text of a net or state file without its time of day."""
    return _GENERATED_COMMENT.sub(b"", data, count=1)


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file in the same folder, then rename it: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# by path, size and time of change
_sha256_seen: dict[tuple[Path, int, int], str] = {}


def remembered_sha256_of(path: Path) -> str:
    """As sha256_of. The file is read again only if its size or time of change differs from the last look."""
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _sha256_seen:
        _sha256_seen[key] = sha256_of(path)
    return _sha256_seen[key]


def code_digest(*packages: str, root: Path = REPO_ROOT) -> str:
    """SHA-256 over the names and contents of all modules of the packages, which are folders of `root`."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def memory_file(name: str, data: bytes) -> tuple[int, Path]:
    """A file in memory, read-only: its descriptor, and the path by which this process and its forks reach it until the
    descriptor is closed."""
    writable = os.memfd_create(name)
    try:
        with open(writable, "wb", closefd=False) as file:
            file.write(data)
        # A descriptor's number is used again. A time of change that is made from the content keeps caches right that go
        # by path and time.
        time_ns = int.from_bytes(hashlib.sha256(data).digest()[:7], "big")
        os.utime(writable, ns=(time_ns, time_ns))
        # read-only, so that a fork of the simulation does not mistake it for one of SUMO's outputs
        descriptor = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    return descriptor, Path(f"/proc/{os.getpid()}/fd/{descriptor}")


@contextmanager
def folder_lock(folder: Path, what: str, *, lock_file: str = LOCK_FILE, wait: bool = False) -> Iterator[None]:
    """Create `folder` if it is missing, and be its only writer until the block ends.

    what: the things to be written, for the error message.
    lock_file: a file in `folder` that says who holds the lock. Tools that may write to one folder at the same time take
    different files.
    The kernel releases the lock when this process ends, even if it is killed. Programs that this process starts do not
    keep the lock. Raises ConfigError at once if another process holds it, or with `wait` says so and waits for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / lock_file
    descriptor = _locked(path)
    if descriptor is None and wait:
        print(f"waiting until {_holder(path)} has written {what} to {folder}", flush=True)
        while descriptor is None:
            time.sleep(_WAIT_S)
            descriptor = _locked(path)
    if descriptor is None:
        raise ConfigError(
            f"cannot write {what} to {folder}: {_holder(path)} is writing there: wait until it has ended, or choose "
            "another folder"
        )
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, _this_process().encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        # An explicit release also covers forks of this process, which share the open file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return the descriptor of the locked file, or None if another process has locked it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The last holder may have removed the file after it was opened here. Then the lock protects nothing.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _this_process() -> str:
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} on {socket.gethostname()} (since {began}: {this_command()})\n"


def this_command() -> str:
    """The command line of this process, as it may be shown and kept."""
    return shlex.join(["python", *map(without_password, sys.argv)])


def without_password(text: str) -> str:
    """The text without the user and password of the address in it, if there is one (http://USER:PASSWORD@HOST)."""
    return re.sub(r"(?<=://).*@", "", text)


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # the holder has ended in this moment
        text = ""
    return text or "another process"


def install_command(extra: str) -> str:
    """What to type in the repository's root to install an extra of this project: with the uv on PATH, else with the one
    that scripts/setup_env.sh has put into .uv."""
    uv = "uv" if shutil.which("uv") else ".uv/bin/uv"
    return f"{uv} pip install --python .venv/bin/python --editable '.[{extra}]'"
