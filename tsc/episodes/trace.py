"""The trace of an episode: queues by lane, stages and arrivals in every second. The report's figures show it."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsc.files import write_atomically
from tsc.sumo.running import RunningSumo
from tsc.sumo.signal_program import SignalProgram


@dataclass(frozen=True, kw_only=True)
class EpisodeTrace:
    """The trace of T seconds from begin_s on. Row t shows the net after the step that ended at begin_s + t + 1.

    lanes: the lanes of all approaches, each once (L). halting_veh[T, L]: halting vehicles (speed < 0.1 m/s).
    stage[T, J]: index of the green stage of each junction, in the order of `programs`; -1 between stages.
    arrived_veh[T]: vehicles that have reached their destination, cumulative.
    """

    begin_s: int
    lanes: tuple[str, ...]
    programs: Mapping[str, SignalProgram]
    halting_veh: NDArray[np.uint16]
    stage: NDArray[np.int8]
    arrived_veh: NDArray[np.uint32]

    @property
    def queue_veh(self) -> NDArray[np.int64]:
        """The queue of all lanes together, by second."""
        queue_veh: NDArray[np.int64] = self.halting_veh.sum(axis=1, dtype=np.int64)
        return queue_veh

    def write(self, path: Path) -> None:
        """Write a compressed .npz. The programs are stored as JSON: the lanes of each junction and of each stage."""
        programs = {
            name: {"stages": [stage.approach_lanes for stage in program.stages], "lanes": program.approach_lanes}
            for name, program in self.programs.items()
        }
        data = io.BytesIO()
        np.savez_compressed(
            data,
            begin_s=self.begin_s,
            lanes=np.array(self.lanes),
            halting_veh=self.halting_veh,
            junctions=np.array(list(self.programs)),
            stage=self.stage,
            arrived_veh=self.arrived_veh,
            programs=json.dumps(programs),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getvalue())


class TraceRecorder:
    """Reads a running simulation after every step."""

    def __init__(
        self, simulation: RunningSumo, lanes: Sequence[str], programs: Mapping[str, SignalProgram], begin_s: int
    ) -> None:
        self._simulation = simulation
        self._lanes = tuple(lanes)
        self._programs = programs
        self._junction_ids = tuple(programs)
        self._begin_s = begin_s
        self._halting_veh = array("H")
        self._phases = array("i")
        self._arrived_veh = array("I")

    def record(self) -> None:
        self._halting_veh.extend(self._simulation.halting_veh(self._lanes))
        self._phases.extend(self._simulation.phase_indices(self._junction_ids))
        self._arrived_veh.append(self._simulation.arrived_veh())

    def trace(self) -> EpisodeTrace:
        halting_veh = np.array(self._halting_veh, dtype=np.uint16).reshape(-1, len(self._lanes))
        phases = np.array(self._phases, dtype=np.int32).reshape(-1, len(self._junction_ids))
        return EpisodeTrace(
            begin_s=self._begin_s,
            lanes=self._lanes,
            programs=self._programs,
            halting_veh=halting_veh,
            stage=_stages(phases, list(self._programs.values())),
            arrived_veh=np.cumsum(np.array(self._arrived_veh, dtype=np.uint32), dtype=np.uint32),
        )


def _stages(phases: NDArray[np.int32], programs: Sequence[SignalProgram]) -> NDArray[np.int8]:
    """Turn phase indices into stages, one column per junction."""
    stages = np.full(phases.shape, -1, dtype=np.int8)
    for column, program in enumerate(programs):
        for number, stage in enumerate(program.stages):
            stages[phases[:, column] == stage.phase_index, column] = number
    return stages


@dataclass(frozen=True, kw_only=True)
class Greens:
    """The greens of all junctions together.

    length_s: the length of each green that began and ended in the measured period.
    num_ended: how many greens ended in it; this also counts greens that began before it.
    """

    length_s: NDArray[np.int64]
    num_ended: int


def greens(stage: NDArray[np.int8], from_second: int) -> Greens:
    """The greens of a measured period from second `from_second` to the end. stage: [T, J] as in EpisodeTrace."""
    lengths = []
    num_ended = 0
    for column in stage.T:
        # a run of equal stages ends when the next second has another stage
        ends = np.flatnonzero(column[1:] != column[:-1]) + 1
        begins = np.concatenate(([0], ends[:-1])) if len(ends) else ends
        is_green = column[begins] >= 0
        begins, ends = begins[is_green], ends[is_green]
        num_ended += int((ends >= from_second).sum())
        # the very first run may have begun before the episode
        whole = (begins > 0) & (begins >= from_second)
        lengths.append(ends[whole] - begins[whole])
    return Greens(length_s=np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64), num_ended=num_ended)
