"""Replays a saved state with each of the two answers, in a process of its own, because libsumo runs one simulation a
process.

The process keeps one simulation that has only read its net. A replay is a forked copy of it that loads the state, with
a further fork for the second answer. So the net is read once, and a replay leaves nothing behind for the next one.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tsc.cost.continuation import Continuation, continue_with, outcomes_of
from tsc.cost.outcome import Outcomes, OutcomeSettings, import_measures
from tsc.errors import ReplayError, ScenarioError, StateError, TscError
from tsc.files import memory_file, remembered_sha256_of
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl, Signals, read_signals
from tsc.replays.request import ReplayRequest
from tsc.replays.saved_state import (
    demand_until_s,
    occupied_internal_lanes,
    state_text,
    state_time_s,
    with_junctions_last,
    with_repeated_loader_second,
    with_right_of_way,
    without_departures_after,
)
from tsc.replays.state_archive import state_bytes
from tsc.sumo.additional_files import without_outputs
from tsc.sumo.fork import in_fork
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalProgram
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput
from tsc.sumo.version import installed_sumo_version

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Template:
    """A simulation that has only read its net, and its programs. It is never stepped. Replays are forks of it."""

    key: tuple[Any, ...]
    simulation: Simulation
    programs: Mapping[str, SignalProgram]


# libsumo has one simulation a process
_template: _Template | None = None


def _template_for(files: SumoFiles, net_sha256: str | None) -> _Template:
    """The template of these files' net, opened unless it is open already. Raises ScenarioError."""
    global _template
    files = replace(files, route_files=())
    status = files.net_file.stat() if files.net_file.is_file() else None
    key = (files, net_sha256, status and (status.st_size, status.st_mtime_ns))
    if _template is None or _template.key != key:
        _template = None
        simulation = Simulation(files)
        _template = _Template(key, simulation, read_signals(simulation).programs)
        # the garbage collector of a fork would visit every object and so copy every page
        gc.freeze()
    return _template


def replayed_signals(sumo: SumoInput, folder: Path) -> Signals:
    """The signals of a dataset's net that a replay can control. folder: of the dataset file. Raises ScenarioError."""
    files = sumo.files_in(folder)
    quiet = replace(files, route_files=(), additional_files=tuple(map(_quiet, files.additional_files)))
    return read_signals(Simulation(quiet))


def _sha256_of_scenario_file(path: Path) -> str:
    if not path.is_file():
        raise ScenarioError(f"{path} does not exist: generate the dataset again, or move it back")
    return remembered_sha256_of(path)


def checked_state(request: ReplayRequest) -> str:
    """The text of the state. Raises StateError or ScenarioError if a file is missing, changed, or of another SUMO."""
    path = request.state_path
    try:
        data = state_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise StateError(f"state {path} does not exist: generate the dataset again, or move it back") from None
    if request.state_sha256 is not None:
        digest = hashlib.sha256(data).hexdigest()
        if digest != request.state_sha256:
            raise StateError(
                f"state {path} has SHA-256 {digest[:12]}…, but the sample says {request.state_sha256[:12]}…: "
                "the file was changed or damaged; generate the dataset again"
            )
    dataset_dir = Path(request.dataset_dir)
    for name, expected in request.sumo.digests.items():
        if expected is not None and _sha256_of_scenario_file(dataset_dir / name) != expected:
            raise ScenarioError(
                f"{dataset_dir / name} is not the file that state {path} was saved with (its SHA-256 differs): "
                "generate the dataset again"
            )
    made_by, installed = request.sumo.version, installed_sumo_version()
    if made_by.split(".")[:2] != installed.split(".")[:2]:
        raise StateError(
            f"state {path} was saved by SUMO {made_by}, but {installed} is installed: install libsumo {made_by} or "
            "generate the dataset again"
        )
    return state_text(data, path)


# Memory files of additional files, by path, size and time of change. They live as long as the process.
_quiet_files: dict[tuple[Path, int, int], Path] = {}


def _quiet(path: Path) -> Path:
    """The additional file, or if it makes SUMO write files, a memory file without that. Many replays at once would
    write into one file, and a dataset of others into any. Raises ScenarioError."""
    if not path.is_file():
        return path  # Simulation reports it
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _quiet_files:
        text = without_outputs(path)
        _quiet_files[key] = path if text is None else memory_file(path.name, text)[1]
    return _quiet_files[key]


@contextmanager
def _in_memory(text: str) -> Iterator[Path]:
    """A file in memory, for this process and its forks. It needs no removal."""
    descriptor = os.memfd_create("state.xml")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(text.encode())
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _continued(
    request: ReplayRequest,
    functions: Sequence[Callable[[SignalControl], Result]],
    files: SumoFiles,
    template: _Template,
    text: str,
) -> list[Result]:
    """files: without route files if the state holds all its demand up to the end."""

    def result(simulation: Simulation, function: Callable[[SignalControl], Result]) -> Result:
        return function(_restore(request, simulation, template.programs))

    def all_in_fork(state_file: Path) -> list[Result]:
        if files == template.simulation.files:
            simulation = template.simulation
            simulation.load_state(state_file)
        else:
            simulation = Simulation(files, state_file=state_file)
        *first, last = functions
        results = [in_fork(partial(result, simulation, function)) for function in first]
        return [*results, result(simulation, last)]

    with _in_memory(text) as state_file:
        try:
            return in_fork(lambda: all_in_fork(state_file))
        except StateError as error:
            raise StateError(str(error).replace(str(state_file), str(request.state_path))) from error


def _restore(request: ReplayRequest, simulation: Simulation, programs: Mapping[str, SignalProgram]) -> SignalControl:
    """Take over the signals at the second of the decision: those that have a clock, or all if the sample has none."""
    if request.clocks:
        programs = {name: program for name, program in programs.items() if name in request.clocks}
    control = SignalControl(simulation, request.timing, programs)
    control.restore(request.clocks)
    program = control.program(request.junction_id)
    clock = control.clocks[request.junction_id]
    if not clock.green:
        raise ReplayError(
            f"junction {request.junction_id!r} is not in a stage of program {program.program_id!r} in state "
            f"{request.state_path}: only a junction in green has something to decide"
        )
    clock.elapsed_green_s = request.current_green_elapsed_s
    return control


def completed(text: str, net: Simulation) -> str:
    """The state with everything that SUMO left out and that can be restored (tsc.replays.saved_state)."""
    lanes = {lane: net.next_lane(lane) for lane in occupied_internal_lanes(text)}
    text = with_right_of_way(text, {lane: to for lane, to in lanes.items() if to is not None})
    return with_repeated_loader_second(with_junctions_last(text))


def continue_state(
    request: ReplayRequest,
    functions: Sequence[Callable[[SignalControl], Result]],
    *,
    length_s: float,
    prepare: Callable[[str, Simulation], str] = completed,
) -> list[Result]:
    """The result of each function, called with the saved simulation, each from the same state.

    length_s: the most seconds that a function moves the simulation on.
    prepare: changes the text of the state before it is loaded, given a simulation of the net.

    Raises StateError, ScenarioError or ReplayError, which always name the state, and ReplayProcessDied if the process
    of the replay ended without an answer. It never returns a number instead.
    """
    text = checked_state(request)
    files = request.sumo.files_in(Path(request.dataset_dir))
    try:
        files = replace(files, additional_files=tuple(map(_quiet, files.additional_files)))
        template = _template_for(files, request.sumo.net_sha256)
        end_s = state_time_s(text) + length_s
        if demand_until_s(text) >= end_s:
            text, files = without_departures_after(text, end_s), template.simulation.files
        text = prepare(text, template.simulation)
        return _continued(request, functions, files, template, text)
    except TscError as error:
        if str(request.state_path) in str(error):
            raise
        raise type(error)(f"replay of state {request.state_path} (sample {request.sample_id}): {error}") from error


def replay_continuations(
    request: ReplayRequest, settings: OutcomeSettings, prepare: Callable[[str, Simulation], str] = completed
) -> dict[Decision, Continuation]:
    """The state continued with each answer. `prepare` and the errors are those of continue_state."""
    import_measures(settings)
    functions = [
        partial(continue_with, junction_id=request.junction_id, decision=decision, settings=settings)
        for decision in Decision
    ]
    continuations = continue_state(request, functions, length_s=settings.horizon_s, prepare=prepare)
    return dict(zip(Decision, continuations, strict=True))


def replay(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    """The outcomes of replay_continuations."""
    return outcomes_of(replay_continuations(request, settings), settings)
