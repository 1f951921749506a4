"""Replays a saved state with each of the two answers. Runs in a process of its own: libsumo has one simulation each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tsc.continuation import continue_with
from tsc.decision import Decision
from tsc.errors import ReplayError, ScenarioError, StateError, TscError
from tsc.outcome import Outcomes, OutcomeSettings
from tsc.replay_request import ReplayRequest
from tsc.signal_control import SignalControl, controllable_programs
from tsc.signal_program import SignalProgram
from tsc.simulation import Simulation, SumoFiles
from tsc.sumo_version import installed_sumo_version

# Both are the same for every state of a net; kept for the life of a worker.
_programs: dict[tuple[Path, str | None], dict[str, SignalProgram]] = {}
_checked_files: dict[tuple[Path, int, int], str] = {}


def file_sha256(path: Path) -> str:
    """Digest of a file; read again only when its size or time of change differs from the last look."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ScenarioError(f"{path} does not exist: generate the dataset again, or move it back") from None
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _checked_files:
        _checked_files[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _checked_files[key]


def sumo_files(sumo: dict[str, Any], dataset_dir: Path) -> SumoFiles:
    return SumoFiles(
        net_file=dataset_dir / sumo["net_file"],
        route_files=tuple(dataset_dir / name for name in sumo["route_files"]),
        additional_files=tuple(dataset_dir / name for name in sumo.get("additional_files", [])),
        seed=sumo.get("seed", 0),
        step_length_s=sumo.get("step_length_s", 1.0),
        time_to_teleport_s=sumo.get("time_to_teleport_s", -1.0),
    )


def check_request(request: ReplayRequest) -> None:
    """Raises StateError or ScenarioError where a file is missing, changed, or made by another SUMO."""
    path = request.state_path
    if not path.is_file():
        raise StateError(f"state {path} does not exist: generate the dataset again, or move it back")
    if request.state_sha256 is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != request.state_sha256:
            raise StateError(
                f"state {path} has SHA-256 {digest[:12]}…, but the sample says {request.state_sha256[:12]}…: "
                "the file was changed or damaged; generate the dataset again"
            )
    sumo, dataset_dir = request.sumo, Path(request.dataset_dir)
    names = [sumo["net_file"], *sumo["route_files"]]
    digests = [sumo.get("net_sha256"), *(sumo.get("route_sha256") or [])]
    for name, expected in zip(names, digests, strict=False):  # a foreign dataset has no digests of its routes
        if expected is not None and file_sha256(dataset_dir / name) != expected:
            raise ScenarioError(
                f"{dataset_dir / name} is not the file that state {path} was saved with (its SHA-256 differs): "
                "generate the dataset again"
            )
    made_by, installed = request.sumo.get("version"), installed_sumo_version()
    if made_by is not None and made_by.split(".")[:2] != installed.split(".")[:2]:
        raise StateError(
            f"state {path} was saved by SUMO {made_by}, but {installed} is installed: install libsumo {made_by} or "
            "generate the dataset again"
        )


def restore(request: ReplayRequest) -> SignalControl:
    """Load the state and take over its signals, at the second of the decision."""
    files = sumo_files(request.sumo, Path(request.dataset_dir))
    simulation = Simulation(files, state_file=request.state_path)
    key = (files.net_file, request.sumo.get("net_sha256"))
    if key not in _programs:
        _programs[key] = controllable_programs(simulation)
    control = SignalControl(simulation, request.timing, _programs[key])
    control.restore(request.clocks)
    program = control.program(request.junction_id)
    clock = control.clocks[request.junction_id]
    if not clock.green:
        raise ReplayError(
            f"junction {request.junction_id!r} is in no stage of program {program.program_id!r} in state "
            f"{request.state_path}: only a junction in green has something to decide"
        )
    clock.elapsed_green_s = request.current_green_elapsed_s
    return control


def replay(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    """Load the state twice and continue it with each answer.

    Raises StateError, ScenarioError or ReplayError, always naming the state; never returns a number instead.
    """
    check_request(request)
    costs = {}
    for decision in Decision:
        try:
            control = restore(request)
            costs[decision] = continue_with(control, request.junction_id, decision, settings)
        except TscError as error:
            if str(request.state_path) in str(error):
                raise
            raise type(error)(f"replay of state {request.state_path} (sample {request.sample_id}): {error}") from error
    return Outcomes.from_costs(settings, costs[Decision.YES], costs[Decision.NO])
