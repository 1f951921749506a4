"""Scenarios of installed packages: resco:NAME from sumo-rl, and sumo:NAME from eclipse-sumo.

They are read where they are installed. The licences of RESCO's nets and demand do not allow this project to pass them
on.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import sumo

from tsc.errors import ConfigError, ScenarioError
from tsc.files import install_command
from tsc.scenarios.sumocfg import SumoConfig, read_sumocfg
from tsc.scenarios.sumocfg_scenario import SumocfgScenario, sumocfg_scenario
from tsc.scenarios.traffic_scenario import ScenarioSettings

RESCO_PREFIX, SUMO_PREFIX = "resco:", "sumo:"

_INTAS = "GPL-3.0 (InTAS)"
_TAPAS = "CC BY-NC-SA 3.0 (TAPASCologne), no commercial use"
_GRID = "CC BY-NC-SA 4.0 in RESCO, no commercial use"
# The licences of RESCO's nets and demand, as far as they are known. The licence of sumo-rl (MIT) is for its code only.
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
_GAMES = ("a10kw", "corridor", "cross", "fkk_in", "grid6", "square")
_SUMO_LICENCE = "EPL-2.0 or GPL-2.0-or-later (Eclipse SUMO)"

PACKAGED_WORDS = (
    *(RESCO_PREFIX + name for name in RESCO_LICENCES),
    *(SUMO_PREFIX + name for name in (*_RILSA, *_GAMES)),
)


def packaged_scenario(word: str, folder: Path, settings: ScenarioSettings) -> SumocfgScenario:
    """The scenario of one of PACKAGED_WORDS. What is generated goes into folder/NAME.

    Raises ConfigError if the package is not installed or `settings` leave no time to simulate, ScenarioError for broken
    files.
    """
    prefix, _, name = word.partition(":")
    if f"{prefix}:" == RESCO_PREFIX:
        return _resco(name, folder, settings)
    return _rilsa(name, folder, settings) if name in _RILSA else _game(name, folder, settings)


def packaged_sumocfg(word: str) -> Path:
    """The sumocfg of one of PACKAGED_WORDS. Raises ConfigError if its package is not installed, or if it has none."""
    prefix, _, name = word.partition(":")
    if f"{prefix}:" == RESCO_PREFIX:
        return _resco_sumocfg(name)
    if name in _RILSA:
        raise ConfigError(f"the demand of scenario {word} is generated, so it has no sumocfg: name one of your own")
    return _game_sumocfg(name)


def _game_sumocfg(name: str) -> Path:
    return Path(sumo.SUMO_HOME, "tools", "game", f"{'A10KW' if name == 'a10kw' else name}.sumocfg")


def _resco_sumocfg(name: str) -> Path:
    package = importlib.util.find_spec("sumo_rl")  # imports nothing
    if package is None or package.origin is None:
        raise ConfigError(
            f"scenario resco:{name} is part of the package sumo-rl, which is not installed: {install_command('resco')}"
        )
    path = Path(package.origin).parent / "nets" / "RESCO" / name / f"{name}.sumocfg"
    if not path.is_file():
        raise ConfigError(
            f"the installed sumo-rl does not have {path}: install the version that has it: {install_command('resco')}"
        )
    return path


def _resco(name: str, folder: Path, settings: ScenarioSettings) -> SumocfgScenario:
    config = read_sumocfg(_resco_sumocfg(name))
    return sumocfg_scenario(name, config, folder, settings, f"RESCO, licence {RESCO_LICENCES[name]}")


def _game(name: str, folder: Path, settings: ScenarioSettings) -> SumocfgScenario:
    notes = (f"a game of SUMO, {_SUMO_LICENCE}", "its plan waits for a player, so under static no green ends")
    return sumocfg_scenario(name, read_sumocfg(_game_sumocfg(name)), folder, settings, *notes)


def _rilsa(name: str, folder: Path, settings: ScenarioSettings) -> SumocfgScenario:
    examples = Path(sumo.SUMO_HOME, "tools", "sumolib", "scenario", "scenarios", "RealWorld")
    junction = examples / f"RiLSA_example{name[-1]}"
    config = SumoConfig(
        path=junction / "run.sumo.cfg",
        net_file=junction / f"{name}.net.xml",
        route_files=(_rilsa_demand(junction, folder / name),),
        additional_files=(junction / "vtypes.add.xml", junction / f"{name}_tls.add.xml"),
        end_s=3600.0,  # as the demand
    )
    note = f"example {name[-1]} of the German RiLSA, {_SUMO_LICENCE}"
    return sumocfg_scenario(name, config, folder, settings, note)


def _rilsa_demand(junction: Path, folder: Path) -> Path:
    """Generate the demand with the junction's own script, which writes into the folder that it runs in."""
    folder.mkdir(parents=True, exist_ok=True)
    script = junction / "makeRoutes.py"
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False)
    path = folder / "flows.rou.xml"
    if done.returncode != 0 or not path.is_file():
        raise ScenarioError(f"{script} does not write the demand: {done.stderr.strip()}")
    return path
