"""Files that say how SUMO's own files are used (docs/networks.md): which demand, which junctions, which greens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from tsc.junction.signal_settings import BoundsFrom, SignalSettings
from tsc.junction.timing import MAX_TIMING_S
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.scenario import Seeds, TimingSection
from tsc.scenarios.traffic_scenario import ScenarioSettings
from tsc.yaml_file import Section, read_yaml, validate_values

_KEY = "sumocfg"


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= bounds[0] <= bounds[1] <= MAX_TIMING_S:
        raise ValueError(f"{bounds[0]} to {bounds[1]} s: give the shortest and the longest green, 1–{MAX_TIMING_S} s")
    return bounds


class NetworkFile(Section):
    """A scenario file with the key `sumocfg`. What it does not say is the caller's, or the sumocfg's.

    sumocfg: a file, relative to this one, or a word such as resco:cologne1.
    timing, green_bounds: see SignalSettings.bounds_from. greens: by junction, the shortest and longest green in s of
    each of its stages. junctions: those to control, all by default.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    sumocfg: str = Field(min_length=1)
    begin_s: int | None = Field(default=None, ge=0)
    end_s: int | None = Field(default=None, ge=1)
    timing: TimingSection | None = None
    green_bounds: BoundsFrom | None = None
    greens: dict[str, list[Annotated[tuple[int, int], AfterValidator(_ordered)]]] = Field(default_factory=dict)
    junctions: list[str] = Field(default_factory=list)
    demand: DemandVariation | None = None
    seeds: Seeds = Seeds()

    def settings(self, asked: ScenarioSettings) -> ScenarioSettings:
        """What is asked of the scenario, with what this file says."""
        signals = SignalSettings(
            timing=self.timing or asked.signals.timing,
            bounds_from=self.green_bounds or asked.signals.bounds_from,
            greens={name: tuple(bounds) for name, bounds in self.greens.items()},
            junction_ids=asked.signals.junction_ids or tuple(self.junctions),
        )
        return ScenarioSettings(
            begin_s=self.begin_s if asked.begin_s is None else asked.begin_s,
            end_s=self.end_s if asked.end_s is None else asked.end_s,
            duration_s=asked.duration_s,
            time_to_teleport_s=asked.time_to_teleport_s,
            signals=signals,
            demand=self.demand or asked.demand,
        )


def is_network_file(path: Path) -> bool:
    """Raises ConfigError if the file is not YAML."""
    values = read_yaml(path)
    return isinstance(values, dict) and _KEY in values


def load_network_file(path: Path) -> NetworkFile:
    """Raises ConfigError that names file, key, value and what is allowed."""
    return validate_values(read_yaml(path), NetworkFile, where=str(path))
