"""Scenarios of SUMO's own files: the net, demand and additional files that a sumocfg names.

The files are the same in every episode. The seed draws only how drivers behave and what probabilistic flows let in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tsc.files import sha256_of, write_atomically
from tsc.scenarios.scenario import Seeds, Split
from tsc.scenarios.sumocfg import SUMO_DEFAULT_TIME_TO_TELEPORT_S, SumoConfig, read_sumocfg
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario
from tsc.sumo.additional_files import without_outputs
from tsc.sumo.running import SumoFiles

# how long a sumocfg without an end is simulated
DEFAULT_DURATION_S = 3600

SAME_VEHICLES = "the same vehicles in every seed, which draws drivers and probabilistic flows"


@dataclass(frozen=True, kw_only=True)
class SumocfgScenario(TrafficScenario):
    """SUMO's own files. Only the seed of `sumo_files` differs from episode to episode."""

    draws_vehicles: ClassVar[bool] = False

    sumo_files: SumoFiles

    @property
    def net_file(self) -> Path:
        return self.sumo_files.net_file

    def episode_seed(self, split: Split, number: int) -> int:
        return Seeds().episode_seed(split, number)

    def files(self, seed: int, *, demand_file: Path | None = None) -> SumoFiles:
        return replace(self.sumo_files, seed=seed)

    def content(self) -> dict[str, Any]:
        files = self.sumo_files
        return {
            "net": sha256_of(files.net_file),
            "routes": [sha256_of(path) for path in files.route_files],
            "additional": [sha256_of(path) for path in files.additional_files],
            "options": [sha256_of(Path(word)) if Path(word).is_file() else word for word in files.more_options],
        }


def scenario_of_sumocfg(path: Path, folder: Path, settings: ScenarioSettings) -> SumocfgScenario:
    """The scenario of a sumocfg, named like its file. Raises ScenarioError and ConfigError."""
    name = re.sub(r"[^\w.-]", "_", path.stem)
    return sumocfg_scenario(name, read_sumocfg(path), folder, settings)


def sumocfg_scenario(
    name: str, config: SumoConfig, folder: Path, settings: ScenarioSettings, *notes: str
) -> SumocfgScenario:
    """The scenario of a sumocfg that was read. Changed copies of additional files go into folder/NAME.

    notes: come before the notes on what differs from the sumocfg.
    Raises ScenarioError for a broken additional file, ConfigError if `settings` leave no time to simulate.
    """
    all_notes = [*notes, SAME_VEHICLES]
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
    begin_s, end_s = settings.period_s(name, own_begin_s, own_end_s)
    return SumocfgScenario(
        name=name,
        timing=settings.timing,
        begin_s=begin_s,
        end_s=end_s,
        time_to_teleport_s=settings.time_to_teleport_s,
        note="; ".join(all_notes),
        sumo_files=SumoFiles(
            net_file=config.net_file,
            route_files=config.route_files,
            additional_files=tuple(_without_outputs(path, folder / name) for path in config.additional_files),
            time_to_teleport_s=float(settings.time_to_teleport_s),
            begin_s=begin_s,
            more_options=config.traffic_options,
        ),
    )


def _without_outputs(path: Path, folder: Path) -> Path:
    """The additional file itself, or if it makes SUMO write files, a copy in `folder` that makes SUMO write nothing.

    Episodes that run at the same time would write into one file, and into folders that are not ours. Raises
    ScenarioError.
    """
    quiet = without_outputs(path)
    if quiet is None:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    write_atomically(copy, quiet)
    return copy
