"""Read the files that an episode writes in addition to its metrics: OUT/traces and OUT/decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A trace as tsc.episodes.trace writes it: T seconds from begin_s, L lanes, J junctions.

    stage_lanes: the approach lanes of each stage of each junction. junction_lanes: the approach lanes of each junction.
    """

    begin_s: int
    lanes: tuple[str, ...]
    junctions: tuple[str, ...]
    halting_veh: NDArray[np.uint16]
    stage: NDArray[np.int8]
    arrived_veh: NDArray[np.uint32]
    stage_lanes: dict[str, list[list[str]]]
    junction_lanes: dict[str, list[str]]

    def queue_veh(self, lanes: list[str] | None = None) -> NDArray[np.int64]:
        """The queue by second, on the given lanes together, or on all lanes."""
        places = [self.lanes.index(lane) for lane in lanes] if lanes is not None else list(range(len(self.lanes)))
        queue_veh: NDArray[np.int64] = self.halting_veh[:, places].sum(axis=1, dtype=np.int64)
        return queue_veh

    def stage_of(self, junction_id: str) -> NDArray[np.int8]:
        """The junction's green stage by second; -1 between stages."""
        column: NDArray[np.int8] = self.stage[:, self.junctions.index(junction_id)]
        return column


def trace_file(out: Path, scenario: str, controller: str, seed: int) -> Path:
    return out / "traces" / scenario / f"{controller}-seed{seed}.npz"


def decisions_file(out: Path, scenario: str, controller: str, seed: int) -> Path:
    return out / "decisions" / scenario / f"{controller}-seed{seed}.jsonl"


def load_trace(path: Path) -> Trace | None:
    """The trace, or None if the file does not exist."""
    if not path.is_file():
        return None
    with np.load(path) as stored:
        programs = json.loads(str(stored["programs"]))
        return Trace(
            begin_s=int(stored["begin_s"]),
            lanes=tuple(map(str, stored["lanes"])),
            junctions=tuple(map(str, stored["junctions"])),
            halting_veh=stored["halting_veh"],
            stage=stored["stage"],
            arrived_veh=stored["arrived_veh"],
            stage_lanes={name: program["stages"] for name, program in programs.items()},
            junction_lanes={name: program["lanes"] for name, program in programs.items()},
        )


def load_decisions(path: Path) -> list[dict[str, Any]]:
    """The decisions, in the order in which they were taken; empty if the file does not exist."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.is_file() else []
