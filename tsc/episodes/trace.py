"""The trace of an episode: queues by lane, stages and arrivals in every second. The report's figures show it."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsc.files import write_atomically
from tsc.sumo.running import RunningSumo
from tsc.sumo.signal_program import SignalProgram


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace of T seconds from begin_s on. Row t shows the net after the step that ended at begin_s + t + 1.

    lanes: the lanes of all approaches, each once (L). halting_veh[T, L]: halting vehicles (speed < 0.1 m/s).
    programs: the approach lanes of each junction (`lanes`) and of each of its stages (`stages`).
    stage[T, J]: index of the green stage of each junction, in the order of `programs`; -1 between stages.
    arrived_veh[T]: vehicles that have reached their destination, cumulative.
    """

    begin_s: int
    lanes: tuple[str, ...]
    programs: Mapping[str, Mapping[str, Any]]
    halting_veh: NDArray[np.uint16]
    stage: NDArray[np.int8]
    arrived_veh: NDArray[np.uint32]

    @property
    def queue_veh(self) -> NDArray[np.int64]:
        """The queue of all lanes together, by second."""
        return self.queue_on_veh(self.lanes)

    def queue_on_veh(self, lanes: Sequence[str]) -> NDArray[np.int64]:
        """The queue of these lanes together, by second."""
        places = [self.lanes.index(lane) for lane in lanes]
        queue_veh: NDArray[np.int64] = self.halting_veh[:, places].sum(axis=1, dtype=np.int64)
        return queue_veh

    def stages_of(self, junction_id: str, from_second: int) -> NDArray[np.int8]:
        """The green stage of a junction by second, from `from_second` on."""
        column: NDArray[np.int8] = self.stage[from_second:, list(self.programs).index(junction_id)]
        return column

    def write(self, path: Path) -> None:
        """Write a compressed .npz, with the programs as JSON."""
        data = io.BytesIO()
        np.savez_compressed(
            data,
            begin_s=self.begin_s,
            lanes=np.array(self.lanes),
            halting_veh=self.halting_veh,
            junctions=np.array(list(self.programs)),
            stage=self.stage,
            arrived_veh=self.arrived_veh,
            programs=json.dumps(self.programs),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getvalue())


def load_trace(path: Path) -> Trace:
    with np.load(path) as stored:
        return Trace(
            begin_s=int(stored["begin_s"]),
            lanes=tuple(map(str, stored["lanes"])),
            programs=json.loads(str(stored["programs"])),
            halting_veh=stored["halting_veh"],
            stage=stored["stage"],
            arrived_veh=stored["arrived_veh"],
        )


class TraceRecorder:
    """Reads a running simulation after every step."""

    def __init__(self, simulation: RunningSumo, programs: Mapping[str, SignalProgram], begin_s: int) -> None:
        self._simulation = simulation
        self._programs = programs
        self._lanes = tuple(dict.fromkeys(lane for program in programs.values() for lane in program.approach_lanes))
        self._junction_ids = tuple(programs)
        self._begin_s = begin_s
        self._halting_veh = array("H")
        self._phases = array("i")
        self._arrived_veh = array("I")

    def record(self) -> None:
        self._halting_veh.extend(self._simulation.halting_veh(self._lanes))
        self._phases.extend(self._simulation.phase_indices(self._junction_ids))
        self._arrived_veh.append(self._simulation.arrived_veh())

    def trace(self) -> Trace:
        phases = np.array(self._phases, dtype=np.int32).reshape(-1, len(self._junction_ids))
        stages = np.full(phases.shape, -1, dtype=np.int8)
        for column, program in enumerate(self._programs.values()):
            for number, stage in enumerate(program.stages):
                stages[np.isin(phases[:, column], stage.phase_indices), column] = number
        return Trace(
            begin_s=self._begin_s,
            lanes=self._lanes,
            programs={
                name: {"stages": [stage.approach_lanes for stage in program.stages], "lanes": program.approach_lanes}
                for name, program in self._programs.items()
            },
            halting_veh=np.array(self._halting_veh, dtype=np.uint16).reshape(-1, len(self._lanes)),
            stage=stages,
            arrived_veh=np.cumsum(np.array(self._arrived_veh, dtype=np.uint32), dtype=np.uint32),
        )


def greens(stage: NDArray[np.int8], from_second: int) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    """The greens of a junction in a measured period from second `from_second` to the end. stage: a column of Trace's.

    Returns the stage and the length in s of each green that began and ended in the period, and how many greens ended in
    it; this also counts greens that began before it.
    """
    # a run of equal stages ends when the next second has another stage
    ends = np.flatnonzero(stage[1:] != stage[:-1]) + 1
    begins = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    is_green = stage[begins] >= 0
    begins, ends = begins[is_green], ends[is_green]
    # the very first run may have begun before the episode
    whole = (begins > 0) & (begins >= from_second)
    return stage[begins[whole]], ends[whole] - begins[whole], int((ends >= from_second).sum())
