"""Makes scenarios from the words of --scenario and --scenarios.

- FILE.yaml        a scenario or family file (configs/scenarios), or one that says how a sumocfg is used
- FILE.sumocfg     a scenario of SUMO's own files; also FILE.sumo.cfg
- resco:NAME       a benchmark of RESCO, from the installed package sumo-rl
- sumo:NAME        a junction or game of SUMO, from the installed package eclipse-sumo

Each episode draws its vehicles from its seed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsc.errors import ConfigError, did_you_mean
from tsc.scenarios.drawn_scenario import scenarios_of_file
from tsc.scenarios.network_file import is_network_file, load_network_file
from tsc.scenarios.packaged import PACKAGED_WORDS, packaged_scenario, packaged_sumocfg
from tsc.scenarios.sumocfg import SumoConfig, read_sumocfg
from tsc.scenarios.sumocfg_scenario import sumocfg_scenario
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario

# for the help of an option that takes these words
WORDS_HELP = (
    "a scenario, family or network file (.yaml), a .sumocfg file, resco:NAME (needs the package sumo-rl) or sumo:NAME"
)
_SUMOCFG_SUFFIXES = (".sumocfg", ".sumo.cfg")


def traffic_scenarios(
    words: Sequence[str], folder: Path, settings: ScenarioSettings | None = None
) -> list[TrafficScenario]:
    """The scenarios in the order of the words. What has to be built or generated goes into `folder`.

    Raises ConfigError for an unknown word, two scenarios of the same name, and settings that leave no time to simulate;
    ScenarioError for broken files.
    """
    settings = settings or ScenarioSettings()
    sumocfgs = [Path(word) for word in words if not is_scenario_file(word) and word not in PACKAGED_WORDS]
    names = _names(sumocfgs)
    found: list[TrafficScenario] = []
    for word in words:
        path = Path(word)
        if is_scenario_file(word):
            found += _of_network_file(path, folder, settings) or scenarios_of_file(path, folder, settings)
        elif word in PACKAGED_WORDS:
            found.append(packaged_scenario(word, folder, settings))
        else:
            found.append(sumocfg_scenario(names[path], read_sumocfg(path), folder, settings))
    all_names = [scenario.name for scenario in found]
    for name in all_names:
        if all_names.count(name) > 1:
            raise ConfigError(
                f"two scenarios are named {name!r} ({' '.join(words)}): leave one out, or rename its file"
            )
    return found


def sumo_config_of(word: str) -> SumoConfig:
    """What the sumocfg of a word says: of a sumocfg, a network file, or an installed package. Raises ConfigError and
    ScenarioError."""
    path = Path(word)
    if is_scenario_file(word):
        if not is_network_file(path):
            raise ConfigError(f"{word} has no sumocfg: name the sumocfg that the states were saved with")
        named = load_network_file(path).sumocfg
        return sumo_config_of(named if named in PACKAGED_WORDS else str(path.parent / named))
    return read_sumocfg(packaged_sumocfg(word) if word in PACKAGED_WORDS else path)


def _of_network_file(path: Path, folder: Path, settings: ScenarioSettings) -> list[TrafficScenario]:
    """The scenario of a network file; none if it is another kind of file. Raises ConfigError and ScenarioError."""
    if not is_network_file(path):
        return []
    network = load_network_file(path)
    own = network.settings(settings)
    if network.sumocfg in PACKAGED_WORDS:
        # in a folder of its own, so that two files on the same network do not share drawn demands
        scenario = packaged_scenario(network.sumocfg, folder / network.name, own)
        return [replace(scenario, name=network.name, seeds=network.seeds)]
    config = read_sumocfg(path.parent / network.sumocfg)
    return [sumocfg_scenario(network.name, config, folder, own, seeds=network.seeds)]


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Scenarios are named like their files. Where several files have one name, their folders' names come before it."""
    names = {}
    for path in paths:
        parts = [*path.resolve().parts[1:-1], _stem(path)]
        others = [[*other.resolve().parts[1:-1], _stem(other)] for other in paths if other.resolve() != path.resolve()]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        names[path] = re.sub(r"[^\w.-]", "_", "_".join(parts[-length:]))
    return names


def _stem(path: Path) -> str:
    for suffix in _SUMOCFG_SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def is_network(word: str) -> bool:
    """Whether the word names a network of SUMO's own files. Raises ConfigError for an unknown word."""
    return not is_scenario_file(word) or is_network_file(Path(word))


def is_scenario_file(word: str) -> bool:
    """Whether the word names a YAML file. Raises ConfigError for an unknown word."""
    if Path(word).suffix in (".yaml", ".yml"):
        return True
    if word.endswith(_SUMOCFG_SUFFIXES) or word in PACKAGED_WORDS:
        return False
    raise ConfigError(
        f"scenario {word!r} is unknown: {did_you_mean(word, PACKAGED_WORDS)}give a .yaml or .sumocfg file, or one of "
        f"{', '.join(PACKAGED_WORDS)}"
    )
