"""The traffic that data is generated from, and that controllers are trained and evaluated on.

All scenarios have this interface, whatever they come from: a scenario or family file, a sumocfg, or an installed
package. tsc.scenarios.by_word makes them from the words of --scenario and --scenarios.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.scenario import Split
from tsc.sumo.running import SumoFiles


@dataclass(frozen=True, kw_only=True)
class ScenarioSettings:
    """What the caller asks of every scenario.

    begin_s, end_s: simulated time; None means the scenario's own. duration_s: the time from the begin to the end; it
    wins over end_s.
    time_to_teleport_s: a vehicle that stands this long is moved past the jam; -1 means never.
    signals: of scenarios that do not say it themselves; its junction_ids hold for all.
    demand: how the vehicles of SUMO's own files differ from seed to seed.
    """

    begin_s: int | None = None
    end_s: int | None = None
    duration_s: int | None = None
    time_to_teleport_s: int = -1
    signals: SignalSettings = field(default_factory=lambda: SignalSettings(bounds_from="net"))
    demand: DemandVariation = field(default_factory=DemandVariation)

    def period_s(self, name: str, own_begin_s: float, own_end_s: float) -> tuple[int, int]:
        """When scenario `name` begins and ends. Raises ConfigError unless both are whole seconds, in this order."""
        begin_s = own_begin_s if self.begin_s is None else self.begin_s
        end_s = own_end_s if self.end_s is None else self.end_s
        if self.duration_s is not None:
            end_s = begin_s + self.duration_s
        if begin_s != int(begin_s) or end_s != int(end_s):
            raise ConfigError(
                f"scenario {name} runs from {begin_s:g} to {end_s:g} s: set begin_s and end_s to whole seconds"
            )
        if end_s <= begin_s:
            raise ConfigError(
                f"scenario {name} begins at {begin_s:g} s and ends at {end_s:g} s: change begin_s or end_s"
            )
        return int(begin_s), int(end_s)


@dataclass(frozen=True, kw_only=True)
class TrafficScenario(ABC):
    """The traffic of one net from begin_s to end_s.

    signals: which are controlled, and the bounds of their greens.
    note: what a reader of the results must know; it may be empty.
    """

    name: str
    signals: SignalSettings
    begin_s: int
    end_s: int
    time_to_teleport_s: int
    note: str

    @property
    def duration_s(self) -> int:
        return self.end_s - self.begin_s

    @property
    def timing(self) -> Timing:
        return self.signals.timing

    @property
    @abstractmethod
    def draws_vehicles(self) -> bool:
        """Whether every seed has vehicles of its own. If not, all seeds have the same vehicles, and a seed draws how
        drivers behave and what probabilistic flows let in."""

    @property
    @abstractmethod
    def net_file(self) -> Path:
        """The net. It is built when it is asked for the first time. Raises ScenarioError."""

    def prepare(self) -> None:
        """Build the net now. Processes that get a copy of this scenario later do not build it again."""
        _ = self.net_file

    @abstractmethod
    def episode_seed(self, split: Split, number: int) -> int:
        """The seed of episode 0, 1, 2, … of a split. No two splits share a seed. Raises ScenarioError for a number
        that the split does not have room for."""

    @abstractmethod
    def files(self, seed: int, *, demand_file: Path | None = None) -> SumoFiles:
        """What SUMO is started from with this seed. Builds what does not exist yet. Raises ScenarioError.

        demand_file: where to write vehicles that the seed draws; None means a file beside the net.
        """

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """JSON values that change with the net, the demand and the options, but not with where the files are."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that change with everything that decides the traffic, except the seed."""
        return {
            "name": self.name,
            "begin_s": self.begin_s,
            "end_s": self.end_s,
            "time_to_teleport_s": self.time_to_teleport_s,
            **self.signals.as_dict(),
            **self.content(),
        }

    def definition(self) -> dict[str, Any]:
        """JSON values that a record keeps of the scenario: those of a scenario file where it comes from one."""
        return self.fingerprint()
