"""The one SUMO simulation of this process. Only this module imports libsumo.

libsumo runs one simulation per process and is not thread-safe. `libsumo.load` in a used process behaves like a new
process (measured), so it is safe to open another simulation in the same process. `simulation.loadState` into a
simulation that has moved is not safe, because the demand loader stays where it was: see Simulation.load_state.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsc.errors import ScenarioError, StateError
from tsc.files import strip_generated_comment, write_atomically
from tsc.sumo.running import RunningSumo, SumoFiles


def _import_libsumo() -> Any:
    # libsumo warns about the installed pyarrow, which is never loaded in the same process; this variable silences it
    before = os.environ.get("LIBSUMO_AS_TRACI")
    os.environ["LIBSUMO_AS_TRACI"] = "quiet"
    try:
        import libsumo
    finally:
        if before is None:
            del os.environ["LIBSUMO_AS_TRACI"]
        else:
            os.environ["LIBSUMO_AS_TRACI"] = before
    return libsumo


libsumo = _import_libsumo()

_simulations_opened = 0

# Decimal places of a saved state. 17 significant digits tell any two 64-bit numbers apart (IEEE 754), and the slowest
# vehicles drive 0.0001 m/s.
EXACT_PRECISION = 21

# How far ahead a simulation that saves states reads its route files. A state holds the vehicles read so far. A replay
# that ends before the last of them departs does not have to read route files.
ROUTE_STEPS_S = 600


class Simulation(RunningSumo):
    """The one simulation of this process. Opening another one closes this one."""

    def __init__(
        self,
        files: SumoFiles,
        *,
        state_file: Path | None = None,
        saves_states: bool = False,
        outputs: Sequence[str] = (),
    ) -> None:
        """Start at begin, or from a saved state.

        saves_states: read the demand far ahead, so that a saved state holds the coming vehicles.
        outputs: further SUMO options, for output files.
        Raises ScenarioError or StateError with SUMO's own message if SUMO refuses.
        """
        for path in (files.net_file, *files.route_files, *files.additional_files):
            if not path.is_file():
                raise ScenarioError(f"{path} does not exist: build the scenario again, or name the right folder")
        options = [*files.options(), "--no-step-log", "--no-warnings", "--duration-log.disable", *outputs]
        # SUMO leaves the random number generators out of a state by default; a reloaded run then diverges
        options += ["--save-state.rng", "--save-state.precision", str(EXACT_PRECISION)]
        # persons and containers, too
        options += ["--save-state.transportables"]
        if saves_states:
            options += ["--route-steps", str(ROUTE_STEPS_S)]
        if state_file is not None:
            if not state_file.is_file():
                raise StateError(f"state {state_file} does not exist: generate the dataset again, or move it back")
            options += ["--load-state", str(state_file)]
        try:
            if libsumo.isLoaded():
                libsumo.load(options)
            else:
                libsumo.start(["sumo", *options])
        except libsumo.TraCIException as error:
            if state_file is not None:
                raise StateError(f"SUMO cannot load state {state_file}: {error}") from error
            raise ScenarioError(f"SUMO cannot load {files.net_file}: {error}") from error
        super().__init__(libsumo, files)
        global _simulations_opened
        _simulations_opened += 1
        self._is_first_of_process = _simulations_opened == 1
        self._has_moved = state_file is not None

    def close(self) -> None:
        if self._sumo.isLoaded():
            self._sumo.close()

    def step(self) -> None:
        """Simulate one second, in as many steps as it takes. Raises ScenarioError if SUMO stops with an error."""
        self._has_moved = True
        try:
            self._sumo.simulationStep(*self._step_to())
        except (libsumo.TraCIException, libsumo.FatalTraCIError) as error:
            raise ScenarioError(f"SUMO stopped at {self.time_s:g} s in {self.files.net_file}: {error}") from error

    def _step_to(self) -> tuple[float, ...]:
        return () if self.files.step_length_s == 1.0 else (self.time_s + 1.0,)

    def save_state(self, path: Path) -> None:
        """Write saved_state as .xml.gz. The file appears atomically. Raises StateError."""
        write_atomically(path, gzip.compress(self.saved_state(), compresslevel=6, mtime=0))

    def saved_state(self) -> bytes:
        """The state as XML, without time stamps: same simulation, same bytes.

        Only the first simulation of a process can be saved. SUMO stores its random number generators as counts of the
        numbers drawn, and a later simulation continues the count of the one before. Its state would be restored with
        other random numbers. Raises StateError.
        """
        if not self._is_first_of_process:
            raise StateError("only the first simulation of a process can be saved faithfully: use a new process")
        with open(os.memfd_create("state.xml"), "rb") as file:
            self._sumo.simulation.saveState(f"/proc/self/fd/{file.fileno()}")
            return strip_generated_comment(file.read())

    def load_state(self, path: Path) -> None:
        """Turn this simulation into the saved one. It must have been opened without demand, and must not have moved.

        SUMO's loadState leaves the demand loader and the random number generators as they are, so any other simulation
        would continue wrongly. Raises StateError.
        """
        if self._has_moved or self.files.route_files:
            raise StateError("a state can only be loaded into a simulation without demand that has not moved")
        self._has_moved = True
        try:
            self._sumo.simulation.loadState(str(path))
        except libsumo.TraCIException as error:
            raise StateError(f"SUMO cannot load state {path}: {error}") from error

    def next_lane(self, internal_lane: str) -> str | None:
        """The lane to which the one link of a lane inside a junction leads. None if the lane is unknown or does not
        have exactly one link."""
        try:
            links = self._sumo.lane.getLinks(internal_lane)
        except libsumo.TraCIException:
            return None
        if len(links) != 1:
            return None
        to_lane, via_lane = links[0][0], links[0][4]
        return str(via_lane or to_lane)


def detach_outputs_of_fork() -> None:
    """In a forked child: turn every regular file open for writing (SUMO's outputs) into /dev/null.

    Parent and child share file offsets, so the child's SUMO would flush into the parent's files. Standard input,
    output and error stay.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for name in os.listdir("/dev/fd"):
        descriptor = int(name)
        if descriptor <= 2 or descriptor == null:
            continue
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError:  # the descriptor of the listing itself, which is closed by now
            continue
        if regular and _is_writable(descriptor):
            os.dup2(null, descriptor)


def _is_writable(descriptor: int) -> bool:
    return (fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE) != os.O_RDONLY
