"""What is evaluated on: our scenario files, any sumocfg, and the nets that sumo-rl and eclipse-sumo bring along.

Words of --scenarios:

- FILE.yaml        a scenario or a family of configs/scenarios; each episode draws its demand from an evaluation seed
- FILE.sumocfg     its files are taken as they are; the seed only draws drivers and probabilistic flows
- resco:NAME       a benchmark of RESCO from the installed sumo-rl, read where it lies: the licences of its nets and
                   demand do not allow that this project passes them on
- sumo:NAME        a junction or game of the installed eclipse-sumo, read where it lies
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sumo

from tsc.errors import ConfigError, ScenarioError, did_you_mean
from tsc.evaluation.settings import EvaluationSettings
from tsc.files import sha256_of, write_atomically
from tsc.junction.signal_control import controllable_programs
from tsc.junction.timing import Timing
from tsc.processes import die_with_parent
from tsc.scenarios.family import load_scenarios
from tsc.scenarios.scenario import Scenario, build_demand, build_net
from tsc.scenarios.sumocfg import SUMO_DEFAULT_TIME_TO_TELEPORT_S, SumoConfig, read_sumocfg
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

# how long a sumocfg without an end is run
DEFAULT_DURATION_S = 3600
# SUMO's seed of the first episode of a sumocfg, as the evaluation seeds of our own scenarios
FIRST_SUMO_SEED = 1001

_INTAS = "GPL-3.0 (InTAS)"
_TAPAS = "CC BY-NC-SA 3.0 (TAPASCologne), no commercial use"
_GRID = "CC BY-NC-SA 4.0 in RESCO, no commercial use"
# what is known of the licences of RESCO's nets and demand; sumo-rl's own licence (MIT) is for its code
RESCO_LICENCES = {
    "cologne1": _TAPAS,
    "cologne3": _TAPAS,
    "cologne8": _TAPAS,
    "ingolstadt1": _INTAS,
    "ingolstadt7": _INTAS,
    "ingolstadt21": _INTAS,
    "grid4x4": _GRID,
    "arterial4x4": "none stated in RESCO",
}
_RILSA = ("rilsa1", "rilsa2", "rilsa3", "rilsa4")
_GAMES = {
    "a10kw": "A10KW",
    "corridor": "corridor",
    "cross": "cross",
    "fkk_in": "fkk_in",
    "grid6": "grid6",
    "square": "square",
}
SUMO_NAMES = (*_RILSA, *_GAMES)
_SUMO_LICENCE = "EPL-2.0 or GPL-2.0-or-later (Eclipse SUMO)"

RESCO_PREFIX, SUMO_PREFIX = "resco:", "sumo:"
_INSTALL_RESCO = "uv pip install --python .venv/bin/python --editable '.[resco]'"

# attributes of additional files that name what SUMO writes, by the kind of element
_WRITES = {
    "calibrator": "output",
    "e1Detector": "file",
    "inductionLoop": "file",
    "e2Detector": "file",
    "laneAreaDetector": "file",
    "e3Detector": "file",
    "entryExitDetector": "file",
    "instantInductionLoop": "file",
    "edgeData": "file",
    "laneData": "file",
    "routeProbe": "file",
    "vTypeProbe": "file",
    "timedEvent": "dest",
}
_NOWHERE = "/dev/null"


@dataclass(frozen=True, kw_only=True)
class EvaluationScenario(ABC):
    """Traffic to evaluate on. Measured is from begin_s + warm_up_s to end_s.

    note: what a reader of the results must know of it; may be empty.
    """

    name: str
    timing: Timing
    begin_s: int
    end_s: int
    warm_up_s: int
    note: str

    @abstractmethod
    def files(self, number: int) -> tuple[int, SumoFiles]:
        """Seed and files of episode 0, 1, 2, …; builds what is to be built. Raises ScenarioError."""

    @abstractmethod
    def fingerprint(self) -> Any:
        """JSON values that change with everything that decides the traffic, but for the seed."""

    def _span(self) -> dict[str, Any]:
        return {"name": self.name, "begin_s": self.begin_s, "end_s": self.end_s, "warm_up_s": self.warm_up_s}


@dataclass(frozen=True, kw_only=True)
class DrawnScenario(EvaluationScenario):
    """Of a scenario file; net and demand are built under `folder`."""

    scenario: Scenario
    folder: Path
    time_to_teleport_s: int

    @cached_property
    def _net_file(self) -> Path:
        path = self.folder / f"{self.name}.net.xml"
        build_net(self.scenario, path)
        return path

    def files(self, number: int) -> tuple[int, SumoFiles]:
        seed = self.scenario.seeds.episode_seed("evaluation", number)
        route_file = self.folder / f"seed{seed}.rou.xml"
        build_demand(self.scenario, self._net_file, seed, route_file)
        return seed, SumoFiles(
            net_file=self._net_file,
            route_files=(route_file,),
            seed=seed,
            time_to_teleport_s=self.time_to_teleport_s,
            begin_s=self.begin_s,
        )

    def fingerprint(self) -> Any:
        return {
            **self._span(),
            "time_to_teleport_s": self.time_to_teleport_s,
            "scenario": self.scenario.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class FileScenario(EvaluationScenario):
    """Of SUMO's own files, which are the same in each episode."""

    sumo_files: SumoFiles

    def files(self, number: int) -> tuple[int, SumoFiles]:
        seed = FIRST_SUMO_SEED + number
        return seed, replace(self.sumo_files, seed=seed)

    def fingerprint(self) -> Any:
        files = self.sumo_files
        return {
            **self._span(),
            "time_to_teleport_s": files.time_to_teleport_s,
            "net": sha256_of(files.net_file),
            "routes": [sha256_of(path) for path in files.route_files],
            "additional": [sha256_of(path) for path in files.additional_files],
            "options": [sha256_of(Path(word)) if Path(word).is_file() else word for word in files.more_options],
        }


def evaluation_scenarios(words: Sequence[str], settings: EvaluationSettings, folder: Path) -> list[EvaluationScenario]:
    """In the order of the words. What has to be built or generated goes into folder/NAME.

    Raises ConfigError for a word or a combination of settings that cannot be, ScenarioError for broken files.
    """
    found: list[EvaluationScenario] = []
    for word in words:
        found += _of_word(word, settings, folder)
    names = [scenario.name for scenario in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two scenarios are named {name!r} ({' '.join(words)}): leave one out, or rename its file"
            )
    return found


def _of_word(word: str, settings: EvaluationSettings, folder: Path) -> list[EvaluationScenario]:
    if word.startswith(RESCO_PREFIX):
        return [_resco(_known(word, RESCO_PREFIX, tuple(RESCO_LICENCES)), settings, folder)]
    if word.startswith(SUMO_PREFIX):
        return [_sumo(_known(word, SUMO_PREFIX, SUMO_NAMES), settings, folder)]
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return [_drawn(scenario, settings, folder) for scenario in load_scenarios(path)]
    if path.suffix == ".sumocfg":
        name = re.sub(r"[^\w.-]", "_", path.stem)
        return [_of_sumocfg(name, read_sumocfg(path), settings, folder)]
    offered = [*(RESCO_PREFIX + name for name in RESCO_LICENCES), *(SUMO_PREFIX + name for name in SUMO_NAMES)]
    meant = did_you_mean(word, offered)
    raise ConfigError(
        f"scenario {word!r} is unknown: {meant}give a .yaml or .sumocfg file, or one of {', '.join(offered)}"
    )


def _known(word: str, prefix: str, names: Sequence[str]) -> str:
    name = word.removeprefix(prefix)
    if name not in names:
        meant = did_you_mean(word, [prefix + known for known in names])
        raise ConfigError(
            f"scenario {word!r} is unknown: {meant}choose of {', '.join(prefix + name for name in names)}"
        )
    return name


def _drawn(scenario: Scenario, settings: EvaluationSettings, folder: Path) -> EvaluationScenario:
    begin_s, end_s = _span(scenario.name, 0, scenario.duration_s, settings)
    return DrawnScenario(
        name=scenario.name,
        timing=scenario.timing,
        begin_s=begin_s,
        end_s=end_s,
        warm_up_s=settings.warm_up_s,
        note=f"its demand ends at {scenario.duration_s} s" if end_s > scenario.duration_s else "",
        scenario=scenario,
        folder=folder / scenario.name,
        time_to_teleport_s=settings.time_to_teleport_s,
    )


def _of_sumocfg(
    name: str, config: SumoConfig, settings: EvaluationSettings, folder: Path, *notes: str
) -> EvaluationScenario:
    all_notes = [*notes, "the same vehicles in every seed, which draws drivers and probabilistic flows"]
    if config.step_length_s != 1.0:
        all_notes.append(f"steps of 1 s instead of its {config.step_length_s:g} s")
    if config.time_to_teleport_s not in (settings.time_to_teleport_s, SUMO_DEFAULT_TIME_TO_TELEPORT_S):
        all_notes.append(
            f"time-to-teleport {settings.time_to_teleport_s} s instead of its {config.time_to_teleport_s:g} s"
        )
    own_begin_s = config.begin_s or 0.0
    own_end_s = config.end_s
    if own_end_s is None:
        own_end_s = (own_begin_s if settings.begin_s is None else settings.begin_s) + DEFAULT_DURATION_S
        if settings.end_s is None:
            all_notes.append(f"no end in the sumocfg: {DEFAULT_DURATION_S} s taken")
    begin_s, end_s = _span(name, own_begin_s, own_end_s, settings)
    return FileScenario(
        name=name,
        timing=settings.timing,
        begin_s=begin_s,
        end_s=end_s,
        warm_up_s=settings.warm_up_s,
        note="; ".join(all_notes),
        sumo_files=SumoFiles(
            net_file=config.net_file,
            route_files=config.route_files,
            additional_files=tuple(_without_outputs(path, folder / name) for path in config.additional_files),
            time_to_teleport_s=settings.time_to_teleport_s,
            begin_s=begin_s,
            more_options=config.traffic_options,
        ),
    )


def _span(name: str, own_begin_s: float, own_end_s: float, settings: EvaluationSettings) -> tuple[int, int]:
    begin_s = own_begin_s if settings.begin_s is None else settings.begin_s
    end_s = own_end_s if settings.end_s is None else settings.end_s
    if begin_s != int(begin_s) or end_s != int(end_s):
        raise ConfigError(
            f"scenario {name} runs from {begin_s:g} to {end_s:g} s: set begin_s and end_s to whole seconds"
        )
    if end_s <= begin_s + settings.warm_up_s:
        raise ConfigError(
            f"scenario {name} begins at {begin_s:g} s, warms up for {settings.warm_up_s} s and ends at {end_s:g} s: "
            "nothing is left to measure; change begin_s, end_s or warm_up_s"
        )
    return int(begin_s), int(end_s)


def _resco(name: str, settings: EvaluationSettings, folder: Path) -> EvaluationScenario:
    package = importlib.util.find_spec("sumo_rl")  # imports nothing
    if package is None or package.origin is None:
        raise ConfigError(
            f"scenario resco:{name} lies in the package sumo-rl, which is not installed: {_INSTALL_RESCO}"
        )
    path = Path(package.origin).parent / "nets" / "RESCO" / name / f"{name}.sumocfg"
    if not path.is_file():
        raise ConfigError(f"the installed sumo-rl has no {path}: install the version that has it: {_INSTALL_RESCO}")
    return _of_sumocfg(name, read_sumocfg(path), settings, folder, f"RESCO, licence {RESCO_LICENCES[name]}")


def _sumo(name: str, settings: EvaluationSettings, folder: Path) -> EvaluationScenario:
    tools = Path(sumo.SUMO_HOME, "tools")
    if name in _RILSA:
        junction = tools / "sumolib" / "scenario" / "scenarios" / "RealWorld" / f"RiLSA_example{name[-1]}"
        config = SumoConfig(
            path=junction / "run.sumo.cfg",
            net_file=junction / f"{name}.net.xml",
            route_files=(_rilsa_demand(junction, folder / name),),
            additional_files=(junction / "vtypes.add.xml", junction / f"{name}_tls.add.xml"),
            seed=FIRST_SUMO_SEED,
            step_length_s=1.0,
            time_to_teleport_s=settings.time_to_teleport_s,
            begin_s=0.0,
            end_s=3600.0,  # as the demand
            options_not_replayed=(),
            traffic_options=(),
        )
        return _of_sumocfg(name, config, settings, folder, f"example {name[-1]} of the German RiLSA, {_SUMO_LICENCE}")
    return _of_sumocfg(
        name,
        read_sumocfg(tools / "game" / f"{_GAMES[name]}.sumocfg"),
        settings,
        folder,
        f"a game of SUMO, {_SUMO_LICENCE}",
        "its plan waits for a player, so under static no green ends",
    )


def _rilsa_demand(junction: Path, folder: Path) -> Path:
    """Written by the junction's own script, which writes where it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    script = junction / "makeRoutes.py"
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False)
    path = folder / "flows.rou.xml"
    if done.returncode != 0 or not path.is_file():
        raise ScenarioError(f"{script} does not write the demand: {done.stderr.strip()}")
    return path


def _without_outputs(path: Path, folder: Path) -> Path:
    """The additional file, or where it makes SUMO write files, a copy in `folder` that makes it write nowhere: episodes
    that run at once would write into one file, and into folders that are not ours. Raises ScenarioError."""
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{path}:{line}:{column + 1}: broken XML: {error.msg}") from error
    writes = False
    for element in tree.iter():
        written = _WRITES.get(element.tag)
        if written and element.get(written):
            element.set(written, _NOWHERE)
            writes = True
        elif element.get("file"):  # what a rerouter or a variable speed sign reads, from beside the additional file
            element.set("file", str(path.resolve().parent / element.get("file", "")))
    if not writes:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    write_atomically(copy, ElementTree.tostring(tree.getroot()))
    return copy


def check(scenario: EvaluationScenario) -> list[str]:
    """The junctions to be controlled, in the net's order. Reads all demand of the first episode and takes one step, in
    a process of its own. Raises ScenarioError with SUMO's words where it refuses, and where there is no signal with two
    stages."""
    _, files = scenario.files(0)
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
            return pool.submit(_controlled_junctions, files, said.name).result()
        except ScenarioError as error:
            fault = str(error)
        except BrokenProcessPool:
            fault = f"SUMO crashes while it opens {files.net_file}"
        words = [line.strip() for line in Path(said.name).read_text(errors="replace").splitlines() if line.strip()]
    raise ScenarioError("\n  ".join([f"scenario {scenario.name}: {fault}", *words]))


def _controlled_junctions(files: SumoFiles, said_file: str) -> list[str]:
    # SUMO tells the causes of most refusals on standard error only
    os.dup2(os.open(said_file, os.O_WRONLY | os.O_APPEND), 2)
    # SUMO else reads the demand bit by bit, and would tell its faults in the middle of an episode
    simulation = Simulation(files, outputs=("--route-steps", "0"))
    programs = controllable_programs(simulation)
    simulation.step()
    simulation.close()
    return list(programs)
