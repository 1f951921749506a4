"""The files that an episode writes in addition to its metrics: OUT/traces and OUT/decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def trace_file(out: Path, scenario: str, controller: str, seed: int) -> Path:
    return out / "traces" / scenario / f"{controller}-seed{seed}.npz"


def decisions_file(out: Path, scenario: str, controller: str, seed: int) -> Path:
    return out / "decisions" / scenario / f"{controller}-seed{seed}.jsonl"


def load_decisions(path: Path) -> list[dict[str, Any]]:
    """The decisions, in the order in which they were taken; empty if the file does not exist."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.is_file() else []
