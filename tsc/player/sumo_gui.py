"""Plays episodes in sumo-gui: a window for each controller, all at the same second."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sumolib.miscutils import getFreeSocketPort

from tsc.controllers.language_model import Ask
from tsc.controllers.signal_plans import plan_signals
from tsc.episodes.runner import EpisodeJob, controller_of
from tsc.errors import ConfigError, NotApplicable, ScenarioError, SimulationClosed
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.rules.controller import Controller
from tsc.sumo.attached import AttachedSimulation
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import Box

# Pause after each simulated second.
DELAY_MS = 200
WAIT_FOR_SUMO_S = 60.0
# of a window, in pixels
WIDTH, HEIGHT = 900, 800


def check_kinds(kinds: Mapping[str, str]) -> None:
    """kinds: by controller. Raises ConfigError for one that needs copies of the simulation."""
    for name, kind in kinds.items():
        if kind == "lookahead":
            raise ConfigError(
                f"controller {name!r} tries both answers in copies of the simulation, and a sumo-gui cannot be copied: "
                "make a page (--out FILE.html)"
            )


def play(jobs: Sequence[EpisodeJob], asks: Mapping[str, Ask], box: Box, folder: Path) -> None:
    """Returns at the end of the episodes, or when a window is closed.

    asks: of the language models, by controller. box: what the windows show, in the net's coordinates. folder: for
    signal programs. Raises NotApplicable for a controller that cannot run the net, and ScenarioError.
    """
    with ExitStack() as stack, suppress(SimulationClosed):
        windows = [
            stack.enter_context(_window(job, asks.get(job.controller), box, folder, place))
            for place, job in enumerate(jobs)
        ]
        for _ in range(int(jobs[0].files.begin_s), jobs[0].end_s):
            for simulation, control, controller in windows:
                if control is None or controller is None:
                    simulation.step()
                else:
                    due = control.due_junctions()
                    control.advance(controller.decide(control, due) if due else {})


def _attached(process: subprocess.Popen[bytes], port: int) -> AttachedSimulation:
    """Raises ScenarioError if no window opens."""
    deadline_s = time.monotonic() + WAIT_FOR_SUMO_S
    while True:
        try:
            return AttachedSimulation(port)
        except ScenarioError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise ScenarioError(
                    f"sumo-gui opens no window on the display {os.environ.get('DISPLAY')}: check $DISPLAY, or make a "
                    "page (--out FILE.html)"
                ) from error
        time.sleep(0.1)


@contextmanager
def _window(
    job: EpisodeJob, ask: Ask | None, box: Box, folder: Path, place: int
) -> Iterator[tuple[AttachedSimulation, SignalControl | None, Controller | None]]:
    """place: from the left. control, controller: None if SUMO itself switches."""
    own = folder / job.controller
    own.mkdir(parents=True, exist_ok=True)
    try:
        planned = plan_signals(job.kind, job.files, job.signals, job.end_s, own, job.program_file)
    except NotApplicable as error:
        raise NotApplicable(f"controller {job.controller!r} cannot run {job.scenario}: {error}") from error
    settings = planned.settings(job.signals)
    port = getFreeSocketPort()
    command = [str(sumo_binary("sumo-gui")), *planned.files.options(), "--end", str(job.end_s), "--no-step-log"]
    command += ["--window-size", f"{WIDTH},{HEIGHT}", "--window-pos", f"{place * WIDTH},0"]
    command += ["--remote-port", str(port), "--start"]
    with subprocess.Popen([*command, "--delay", str(DELAY_MS)], stdout=subprocess.DEVNULL) as process:
        try:
            simulation = _attached(process, port)
            simulation.show(box)
            controller = controller_of(job, ask)
            control = None
            if controller is not None:
                programs = read_signals(simulation, junction_ids=settings.junction_ids).programs
                control = SignalControl(simulation, settings.timing, programs)
                control.start()
            yield simulation, control, controller
        finally:
            process.terminate()  # not by TraCI: Ctrl-C may have cut an answer of SUMO's in two
