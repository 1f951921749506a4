"""Makes scenarios from the words of --scenario and --scenarios.

- FILE.yaml        a scenario or family file (configs/scenarios); each episode draws its vehicles from its seed
- FILE.sumocfg     a scenario of SUMO's own files; a seed draws only drivers and probabilistic flows
- resco:NAME       a benchmark of RESCO, from the installed package sumo-rl
- sumo:NAME        a junction or game of SUMO, from the installed package eclipse-sumo
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsc.errors import ConfigError, did_you_mean
from tsc.scenarios.drawn_scenario import scenarios_of_file
from tsc.scenarios.packaged import PACKAGED_WORDS, packaged_scenario
from tsc.scenarios.sumocfg_scenario import scenario_of_sumocfg
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario

# for the help of an option that takes these words
WORDS_HELP = "a scenario or family file (.yaml), a .sumocfg file, resco:NAME (needs the package sumo-rl) or sumo:NAME"


def traffic_scenarios(
    words: Sequence[str], folder: Path, settings: ScenarioSettings | None = None
) -> list[TrafficScenario]:
    """The scenarios in the order of the words. What has to be built or generated goes into `folder`.

    Raises ConfigError for an unknown word, two scenarios of the same name, and settings that leave no time to simulate;
    ScenarioError for broken files.
    """
    found: list[TrafficScenario] = []
    settings = settings or ScenarioSettings()
    for word in words:
        if is_scenario_file(word):
            found += scenarios_of_file(Path(word), folder, settings)
        elif word in PACKAGED_WORDS:
            found.append(packaged_scenario(word, folder, settings))
        else:
            found.append(scenario_of_sumocfg(Path(word), folder, settings))
    names = [scenario.name for scenario in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two scenarios are named {name!r} ({' '.join(words)}): leave one out, or rename its file"
            )
    return found


def is_scenario_file(word: str) -> bool:
    """Whether the word names a scenario or family file. Raises ConfigError for an unknown word."""
    suffix = Path(word).suffix
    if suffix in (".yaml", ".yml"):
        return True
    if suffix == ".sumocfg" or word in PACKAGED_WORDS:
        return False
    raise ConfigError(
        f"scenario {word!r} is unknown: {did_you_mean(word, PACKAGED_WORDS)}give a .yaml or .sumocfg file, or one of "
        f"{', '.join(PACKAGED_WORDS)}"
    )
