"""A SUMO that someone else started, over TraCI."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import traci.main  # noqa: F401  a connection only has the parts of TraCI that were imported before it was made
from traci._trafficlight import Logic, Phase
from traci.connection import Connection, FatalTraCIError, TraCIException

from tsc.errors import ScenarioError, SimulationClosed
from tsc.sumo.running import Box, RunningSumo, SumoFiles
from tsc.sumo.signal_program import SignalPlan

# SUMO's type number
_STATIC = 0
# SUMO's name of the first window of a sumo-gui
_WINDOW = "View #0"


class AttachedSimulation(RunningSumo):
    """A SUMO or sumo-gui that someone else started with --remote-port, in another process.

    Once SUMO has closed the connection, every call raises SimulationClosed.
    """

    def __init__(self, port: int, *, host: str = "localhost", order: int | None = None, wait_s: float = 0.0) -> None:
        """Connect, and wait until as many clients have connected as SUMO's --num-clients says.

        order: this client's own number among several TraCI clients. wait_s: how long to wait for SUMO to listen.
        Raises ScenarioError if no SUMO listens on the port, or if its step length does not divide one second.
        """
        where = f"{host}:{port}"
        sumo = _connection(where, host, port, wait_s)
        try:
            if order is not None:
                sumo.setOrder(order)
            self.sumo_version = str(sumo.getVersion()[1])
            step_length_s = float(sumo.simulation.getDeltaT())
            net_file = Path(sumo.simulation.getOption("net-file"))
            begin_s = float(sumo.simulation.getTime())
            self._end_s = float(sumo.simulation.getEndTime())
        except TraCIException as error:
            sumo.close()
            raise ScenarioError(f"{where} does not answer like SUMO 1.28: {error}") from error
        except SimulationClosed:
            raise ScenarioError(
                f"the program that listens on {where} closed the connection: check that it is SUMO, and if several "
                "clients connect to it (--num-clients), give each an --order of its own"
            ) from None
        if 1000 % round(1000 * step_length_s) != 0:  # SUMO counts in milliseconds
            sumo.close()
            raise ScenarioError(
                f"the step length is {step_length_s:g} s: decisions fall on whole seconds, start SUMO with a "
                "--step-length that divides 1 s, for example 1, 0.5 or 0.1"
            )
        super().__init__(sumo, SumoFiles(net_file=net_file, route_files=(), begin_s=begin_s))

    def close(self) -> None:
        """Disconnect. A SUMO without other clients then ends."""
        self._sumo.close()

    def step(self) -> None:
        """Simulate one second, in as many steps as it takes. Raises SimulationClosed, and ScenarioError if SUMO stops
        with an error."""
        time_s = self.time_s
        try:
            self._sumo.simulationStep(time_s + 1.0)
        except TraCIException as error:
            raise ScenarioError(f"SUMO stopped after {time_s:g} s in {self.files.net_file}: {error}") from error

    def show(self, box: Box) -> None:
        """Let the window of a sumo-gui show this part of the net."""
        self._sumo.gui.setBoundary(_WINDOW, *box)

    def run_program(self, plan: SignalPlan) -> None:
        """Let the junction run this program from now on. It begins with the signals that the junction shows."""
        light = self._sumo.trafficlight
        shown = light.getRedYellowGreenState(plan.junction_id)
        states = [phase.state for phase in plan.phases]
        phases = tuple(Phase(each.duration_s, each.state, each.duration_s, each.duration_s) for each in plan.phases)
        begin = states.index(shown) if shown in states else 0
        light.setProgramLogic(plan.junction_id, Logic(plan.program_id, _STATIC, begin, phases))

    def return_to_program(self, junction_id: str, program_id: str) -> None:
        """Let the junction run one of the programs again that it had before. It begins with the signals that the
        junction shows."""
        light = self._sumo.trafficlight
        shown = light.getRedYellowGreenState(junction_id)
        light.setProgram(junction_id, program_id)
        states = [phase.state for phase in self.signal_plan(junction_id).phases]
        if shown in states:
            light.setPhase(junction_id, states.index(shown))

    def is_over(self) -> bool:
        """Whether SUMO's --end is reached, or, without --end, no vehicle is in the net or still to depart.

        SUMO itself continues until its clients disconnect.
        """
        if self._end_s >= 0:
            return self.time_s >= self._end_s
        return int(self._sumo.simulation.getMinExpectedNumber()) == 0


class _Connection(Connection):  # type: ignore[misc]  # traci has no types
    def _sendExact(self) -> Any:  # every request to SUMO passes through here
        try:
            return super()._sendExact()
        except (FatalTraCIError, OSError) as error:
            self._socket = None
            raise SimulationClosed("SUMO closed the connection") from error


def _connection(where: str, host: str, port: int, wait_s: float) -> Any:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _Connection(host, port, None, None, True)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ScenarioError(
                    f"no program listens on {where} ({error}): start SUMO with --remote-port {port} first, and with "
                    "--num-clients if other clients connect to it, too"
                ) from error
        time.sleep(0.1)
