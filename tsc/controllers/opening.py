"""Opens a scenario in SUMO once, to find its faults and its signals before any episode runs."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tsc.controllers.signal_plans import PlannedSignals, plan_signals
from tsc.errors import ScenarioError, TscError
from tsc.junction.signal_settings import SignalSettings
from tsc.processes import die_with_parent
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.binaries import check_net_version
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

# the kind of a controller that ends greens itself, at decision points
DECIDES = "decides"


def opened(scenario: TrafficScenario, folder: Path) -> PlannedSignals:
    """The signals of a scenario as controllers that decide run them. Programs that are needed for it go to `folder`.

    SUMO reads all demand of one episode and takes one step, in a process of its own. Raises ScenarioError with SUMO's
    words if SUMO refuses the files, and if nothing can be controlled; UnknownJunction and ConfigError for settings that
    do not fit the net.
    """
    files = scenario.files(scenario.episode_seed("evaluation", 0))
    check_net_version(files.net_file)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.NamedTemporaryFile(prefix="tsc-check-", suffix=".txt") as said,
        ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=die_with_parent,
            initargs=(os.getpid(),),
        ) as pool,
    ):
        try:
            return pool.submit(_open, files, scenario.signals, scenario.end_s, folder, said.name).result()
        except TscError as error:
            fault, kind = str(error), type(error)
        except BrokenProcessPool:
            fault, kind = f"SUMO crashes while it opens {files.net_file}", ScenarioError
        words = [line.strip() for line in Path(said.name).read_text(errors="replace").splitlines() if line.strip()]
    raise kind("\n  ".join([f"scenario {scenario.name}: {fault}", *words]))


def _open(files: SumoFiles, settings: SignalSettings, end_s: int, folder: Path, said_file: str) -> PlannedSignals:
    # SUMO prints the causes of most refusals on standard error only
    os.dup2(os.open(said_file, os.O_WRONLY | os.O_APPEND), 2)
    planned = plan_signals(DECIDES, files, settings, end_s, folder)
    # without this option SUMO reads the demand bit by bit, and would report its faults in the middle of an episode
    simulation = Simulation(planned.files, outputs=("--route-steps", "0"))
    simulation.step()
    simulation.close()
    return planned
