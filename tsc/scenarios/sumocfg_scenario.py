"""Scenarios of SUMO's own files: the net, demand and additional files that a sumocfg names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError, ScenarioError
from tsc.files import sha256_of, write_atomically
from tsc.scenarios.demand_variation import DemandVariation, write_demand
from tsc.scenarios.family import Range
from tsc.scenarios.scenario import Seeds, Split
from tsc.scenarios.sumocfg import SUMO_DEFAULT_TIME_TO_TELEPORT_S, SumoConfig
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario
from tsc.sumo.additional_files import without_outputs
from tsc.sumo.running import SumoFiles

# how long a sumocfg without an end is simulated
DEFAULT_DURATION_S = 3600

_SCALE = "--scale"

SAME_VEHICLES = "the same vehicles in every seed, which draws drivers and probabilistic flows"


@dataclass(frozen=True, kw_only=True)
class SumocfgScenario(TrafficScenario):
    """SUMO's own files. Each seed draws a demand from their route files, unless the demand is as filed: then only the
    seed of `sumo_files` differs from episode to episode. Drawn demands go into `folder`."""

    sumo_files: SumoFiles
    demand: DemandVariation
    seeds: Seeds
    folder: Path

    @property
    def draws_vehicles(self) -> bool:
        return not self.demand.is_as_filed and bool(self.sumo_files.route_files)

    @property
    def net_file(self) -> Path:
        return self.sumo_files.net_file

    def episode_seed(self, split: Split, number: int) -> int:
        return self.seeds.episode_seed(split, number)

    def files(self, seed: int, *, demand_file: Path | None = None) -> SumoFiles:
        files = replace(self.sumo_files, seed=seed)
        if not self.draws_vehicles:
            return files
        path = demand_file or self.folder / f"seed{seed}.rou.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_demand(files.route_files, path, self.demand, seed=seed, begin_s=self.begin_s, end_s=self.end_s)
        return replace(files, route_files=(path,))

    def content(self) -> dict[str, Any]:
        files = self.sumo_files
        return {
            "net": sha256_of(files.net_file),
            "routes": [sha256_of(path) for path in files.route_files],
            "additional": [sha256_of(path) for path in files.additional_files],
            "options": [sha256_of(Path(word)) if Path(word).is_file() else word for word in files.more_options],
            "step_length_s": files.step_length_s,
            "demand": self.demand.model_dump(mode="json"),
        }


def sumocfg_scenario(
    name: str,
    config: SumoConfig,
    folder: Path,
    settings: ScenarioSettings,
    *notes: str,
    seeds: Seeds | None = None,
) -> SumocfgScenario:
    """The scenario of a sumocfg that was read. What is written for it goes into folder/NAME.

    notes: come before the notes on what differs from the sumocfg.
    Raises ScenarioError for a broken additional file, ConfigError if `settings` leave no time to simulate, or if
    seconds are not whole numbers of steps.
    """
    own_begin_s = config.begin_s or 0.0
    own_end_s = config.end_s
    has_no_end = own_end_s is None
    if own_end_s is None:
        own_end_s = (own_begin_s if settings.begin_s is None else settings.begin_s) + DEFAULT_DURATION_S
    begin_s, end_s = settings.period_s(name, own_begin_s, own_end_s)
    if 1000 % round(1000 * config.step_length_s) != 0:  # SUMO counts in milliseconds
        raise ConfigError(
            f"{config.path} has a step-length of {config.step_length_s:g} s, but decisions fall on whole seconds: "
            "choose one that divides 1 s, for example 1, 0.5 or 0.1"
        )
    options, demand = config.traffic_options, settings.demand
    if not demand.is_as_filed and _SCALE in options:
        # drawn with the demand: a state with vehicles that SUMO itself has copied cannot be loaded again
        place = options.index(_SCALE)
        try:
            factor = float(options[place + 1])
        except ValueError as error:
            raise ScenarioError(f"{config.path}: scale is {options[place + 1]!r}: must be a number") from error
        options = options[:place] + options[place + 2 :]
        scale = Range(low=factor * demand.scale.low, high=factor * demand.scale.high)
        demand = demand.model_copy(update={"scale": scale})
    scenario = SumocfgScenario(
        name=name,
        signals=settings.signals,
        begin_s=begin_s,
        end_s=end_s,
        time_to_teleport_s=settings.time_to_teleport_s,
        note="",
        sumo_files=SumoFiles(
            net_file=config.net_file,
            route_files=config.route_files,
            additional_files=tuple(_without_outputs(path, folder / name) for path in config.additional_files),
            step_length_s=config.step_length_s,
            time_to_teleport_s=float(settings.time_to_teleport_s),
            begin_s=begin_s,
            more_options=options,
        ),
        demand=demand,
        seeds=seeds or Seeds(),
        folder=folder / name,
    )
    all_notes = [*notes, _note_of(demand) if scenario.draws_vehicles else SAME_VEHICLES]
    if config.step_length_s != 1.0:
        all_notes.append(f"steps of {config.step_length_s:g} s")
    if config.time_to_teleport_s not in (settings.time_to_teleport_s, SUMO_DEFAULT_TIME_TO_TELEPORT_S):
        all_notes.append(
            f"time-to-teleport {settings.time_to_teleport_s} s instead of its {config.time_to_teleport_s:g} s"
        )
    if has_no_end and settings.end_s is None and settings.duration_s is None:
        all_notes.append(f"no end in the sumocfg: {DEFAULT_DURATION_S} s taken")
    return replace(scenario, note="; ".join(all_notes))


def _note_of(demand: DemandVariation) -> str:
    scale = demand.scale
    times = f"{scale.low:g}" if scale.low == scale.high else f"{scale.low:g} to {scale.high:g}"
    words = [f"each seed draws its vehicles from the route files, {times} times as many"]
    if demand.resample:
        words.append("with Poisson variation")
    words += [f"{what} by up to {s:g} s" for what, s in (("jitter", demand.jitter_s), ("shift", demand.shift_s)) if s]
    return ", ".join(words)


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
