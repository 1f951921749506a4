"""The processor of this machine, for results that depend on it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's model name, or "unknown"."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
