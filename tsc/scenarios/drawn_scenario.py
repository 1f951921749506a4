"""Scenarios of our own files (configs/scenarios/*.yaml): the net is built, and each seed draws its vehicles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tsc.junction.signal_settings import SignalSettings
from tsc.scenarios.family import load_scenarios
from tsc.scenarios.scenario import Scenario, Split, build_demand, build_net
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario
from tsc.sumo.running import SumoFiles


@dataclass(frozen=True, kw_only=True)
class DrawnScenario(TrafficScenario):
    """The scenario of a scenario file, or one member of a family file. The net is built in `folder`."""

    scenario: Scenario
    folder: Path

    @property
    def draws_vehicles(self) -> bool:
        return True

    @cached_property
    def net_file(self) -> Path:
        path = self.folder / f"{self.name}.net.xml"
        # an existing net may be of an older version of the scenario file
        build_net(self.scenario, path)
        return path

    def episode_seed(self, split: Split, number: int) -> int:
        return self.scenario.seeds.episode_seed(split, number)

    def files(self, seed: int, *, demand_file: Path | None = None) -> SumoFiles:
        route_file = demand_file or self.folder / self.name / f"seed{seed}.rou.xml"
        build_demand(self.scenario, self.net_file, seed, route_file)
        return SumoFiles(
            net_file=self.net_file,
            route_files=(route_file,),
            seed=seed,
            time_to_teleport_s=float(self.time_to_teleport_s),
            begin_s=self.begin_s,
        )

    def content(self) -> dict[str, Any]:
        return {"scenario": self.definition()}

    def definition(self) -> dict[str, Any]:
        return self.scenario.model_dump(mode="json")


def scenarios_of_file(path: Path, folder: Path, settings: ScenarioSettings) -> list[DrawnScenario]:
    """The scenario of a scenario file, or all members of a family file. What is built goes into `folder`.

    Raises ConfigError that names file, key, value and what is allowed, and if `settings` leave no time to simulate.
    """
    found = []
    for scenario in load_scenarios(path):
        begin_s, end_s = settings.period_s(scenario.name, 0, scenario.duration_s)
        found.append(
            DrawnScenario(
                name=scenario.name,
                signals=SignalSettings(timing=scenario.timing, junction_ids=settings.signals.junction_ids),
                begin_s=begin_s,
                end_s=end_s,
                time_to_teleport_s=settings.time_to_teleport_s,
                note=f"its demand ends at {scenario.duration_s} s" if end_s > scenario.duration_s else "",
                scenario=scenario,
                folder=folder,
            )
        )
    return found
