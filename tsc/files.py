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
    return hashlib.sha256(path.read_bytes()).hexdigest()
