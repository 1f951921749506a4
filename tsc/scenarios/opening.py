"""Opens a scenario in SUMO once, to find its faults before any episode runs."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tsc.errors import ScenarioError
from tsc.junction.signal_control import controllable_programs
from tsc.processes import die_with_parent
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation


def controlled_junctions(scenario: TrafficScenario) -> list[str]:
    """The junctions that a controller decides for, in the net's order.

    SUMO reads all demand of one episode and takes one step, in a process of its own. Raises ScenarioError with SUMO's
    words if SUMO refuses the files, and if no signal has two stages.
    """
    files = scenario.files(scenario.episode_seed("evaluation", 0))
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
            return pool.submit(_open, files, said.name).result()
        except ScenarioError as error:
            fault = str(error)
        except BrokenProcessPool:
            fault = f"SUMO crashes while it opens {files.net_file}"
        words = [line.strip() for line in Path(said.name).read_text(errors="replace").splitlines() if line.strip()]
    raise ScenarioError("\n  ".join([f"scenario {scenario.name}: {fault}", *words]))


def _open(files: SumoFiles, said_file: str) -> list[str]:
    # SUMO prints the causes of most refusals on standard error only
    os.dup2(os.open(said_file, os.O_WRONLY | os.O_APPEND), 2)
    # without this option SUMO reads the demand bit by bit, and would report its faults in the middle of an episode
    simulation = Simulation(files, outputs=("--route-steps", "0"))
    programs = controllable_programs(simulation)
    simulation.step()
    simulation.close()
    return list(programs)
