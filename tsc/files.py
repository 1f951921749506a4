"""Files that appear whole or not at all, and SUMO's files without the time of day."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

# the repository, where configs/ and the packages lie side by side
REPO_ROOT = Path(__file__).resolve().parents[1]

# SUMO's net and state files begin with a comment that holds the time of day; without it, same input gives same bytes
_GENERATED_COMMENT = re.compile(rb"<!-- generated on .*?-->\s*", re.DOTALL)


def strip_generated_comment(data: bytes) -> bytes:
    return _GENERATED_COMMENT.sub(b"", data, count=1)


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename: a kill leaves the old file or the new one, never half."""
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
