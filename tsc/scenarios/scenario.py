"""A scenario: its configuration file, its net made by SUMO's own programs, and its demand drawn from a seed."""

from __future__ import annotations

import bisect
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.sax.saxutils import quoteattr

import sumolib
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tsc.errors import ScenarioError
from tsc.files import write_atomically
from tsc.junction.timing import Timing
from tsc.scenarios.junction_net import Junction, build_junction_net
from tsc.sumo.binaries import write_net
from tsc.yaml_file import Section, load_yaml

Split = Literal["train", "validation", "evaluation"]


def _parse_timing(value: Any) -> Any:
    """A section `timing` as a Timing, so that Timing checks it. Any other value is left to pydantic."""
    if not isinstance(value, dict) or not set(value) <= set(Timing.__dataclass_fields__):
        return value
    timing = Timing(**value)
    if timing.min_green_s == timing.max_green_s:
        raise ValueError(f"min_green_s and max_green_s are both {timing.min_green_s} s: choose a greater max_green_s")
    return timing


TimingSection = Annotated[Timing, BeforeValidator(_parse_timing)]


class Demand(Section):
    """Vehicles per hour by entry edge and period, and the shares of the exits by entry edge."""

    period_begin_s: list[int] = Field(min_length=1)
    entries_veh_per_h: dict[str, list[float]] = Field(min_length=1)
    exits: dict[str, dict[str, float]] = Field(default_factory=dict)

    @field_validator("period_begin_s")
    @classmethod
    def _periods_rise_from_zero(cls, value: list[int]) -> list[int]:
        if value[0] != 0 or sorted(set(value)) != value:
            raise ValueError("must begin with 0 and rise")
        return value

    @model_validator(mode="after")
    def _one_rate_a_period(self) -> Demand:
        for edge, rates in self.entries_veh_per_h.items():
            if len(rates) != len(self.period_begin_s):
                raise ValueError(f"entry {edge!r} has {len(rates)} rates for {len(self.period_begin_s)} periods")
            if min(rates) < 0 or max(rates) > 3600:
                raise ValueError(f"entry {edge!r} has a rate outside 0–3600 vehicles per hour")
        for edge, shares in self.exits.items():
            if edge not in self.entries_veh_per_h:
                raise ValueError(f"exits name entry {edge!r}, which has no rates in entries_veh_per_h")
            if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"the exit shares of entry {edge!r} must be at least 0 and sum to 1")
        return self


class Seeds(Section):
    """The first seed of each split."""

    train: int = 1
    validation: int = 501
    evaluation: int = 1001

    def episode_seed(self, split: Split, episode: int) -> int:
        """The seed of episode 0, 1, 2, … of a split. Raises ScenarioError if it would be a seed of the next split."""
        first = int(getattr(self, split))
        above = [start for start in (self.train, self.validation, self.evaluation) if start > first]
        if above and first + episode >= min(above):
            raise ScenarioError(f"{split} has room for {min(above) - first} episodes: raise the seeds after {first}")
        return first + episode


class Scenario(Section):
    """A scenario file (configs/scenarios/*.yaml). Its net is made by netgenerate, or it is a junction of our own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    duration_s: int = Field(gt=0)
    net: dict[str, bool | int | float | str] | None = None
    junction: Junction | None = None
    timing: TimingSection
    demand: Demand
    seeds: Seeds = Seeds()

    @model_validator(mode="after")
    def _one_net(self) -> Scenario:
        if (self.net is None) == (self.junction is None):
            raise ValueError("give either net (options of netgenerate) or junction (approaches and signal), not both")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other_net(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ScenarioFiles:
    """The files of a scenario with one seed's demand."""

    net_file: Path
    route_file: Path


def load_scenario(path: Path) -> Scenario:
    """Raises ConfigError that names file, key, value and what is allowed."""
    return load_yaml(path, Scenario)


def build_net(scenario: Scenario, path: Path) -> None:
    """Write the net with netgenerate or netconvert. The same section gives the same bytes.

    Raises ScenarioError with the words of these programs.
    """
    if scenario.junction is not None:
        build_junction_net(scenario.junction, path, what=scenario.name)
        return
    options = []
    for option, value in (scenario.net or {}).items():
        options += [f"--{option}", str(value).lower() if isinstance(value, bool) else str(value)]
    write_net("netgenerate", options, path, what=scenario.name)


def draw_vehicles(scenario: Scenario, net_file: Path, seed: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (departure in s, edges of the route) of each vehicle, in the order of departure.

    In each second an entry lets in a vehicle with probability rate / 3600, as SUMO's flows with `probability` do.
    Raises ScenarioError for an edge or a route that does not exist.
    """
    net = sumolib.net.readNet(str(net_file))
    routes: dict[tuple[str, str], list[str]] = {}

    def edge_named(name: str) -> Any:
        if not net.hasEdge(name):
            fringe = ", ".join(edge.getID() for edge in net.getEdges() if edge.is_fringe())
            raise ScenarioError(f"scenario {scenario.name}: edge {name!r} is not in the net; choose of {fringe}")
        return net.getEdge(name)

    def route(entry: str, leave: str) -> list[str]:
        if (entry, leave) not in routes:
            path, _ = net.getShortestPath(edge_named(entry), edge_named(leave))
            if path is None:
                raise ScenarioError(f"scenario {scenario.name}: no route leads from edge {entry!r} to edge {leave!r}")
            routes[entry, leave] = [edge.getID() for edge in path]
        return routes[entry, leave]

    def even_shares(entry: str) -> dict[str, float]:
        start = edge_named(entry).getFromNode()
        leaves = sorted(
            edge.getID()
            for edge in net.getEdges()
            if edge.is_fringe() and not edge.getOutgoing() and edge.getToNode() is not start
        )
        return {name: 1 / len(leaves) for name in leaves}

    demand = scenario.demand
    shares = {entry: demand.exits.get(entry) or even_shares(entry) for entry in demand.entries_veh_per_h}
    # one generator per entry: a change of one entry's rates does not change the vehicles of the others
    generators = {entry: random.Random(f"{scenario.name}/{seed}/{entry}") for entry in shares}
    for second in range(scenario.duration_s):
        period = bisect.bisect_right(demand.period_begin_s, second) - 1
        for entry, rates in demand.entries_veh_per_h.items():
            generator = generators[entry]
            if generator.random() < rates[period] / 3600:
                leave = generator.choices(list(shares[entry]), weights=list(shares[entry].values()))[0]
                yield second, route(entry, leave)


def build_demand(scenario: Scenario, net_file: Path, seed: int, path: Path) -> None:
    """Write the vehicles of one seed, each with its route. The same seed gives the same bytes."""
    lines = ["<routes>"]
    for number, (depart_s, edges) in enumerate(draw_vehicles(scenario, net_file, seed)):
        lines.append(
            f'    <vehicle id="v{number}" depart="{depart_s}" departLane="best" departSpeed="max">'
            f"<route edges={quoteattr(' '.join(edges))}/></vehicle>"
        )
    lines.append("</routes>\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines).encode())


def build_sumocfg(scenario: Scenario, files: ScenarioFiles, seed: int, path: Path) -> None:
    """A configuration that `sumo -c` and sumo-gui open."""

    def name(file: Path) -> str:
        return quoteattr(os.path.relpath(file, path.parent))

    text = f"""<configuration>
    <input>
        <net-file value={name(files.net_file)}/>
        <route-files value={name(files.route_file)}/>
    </input>
    <time>
        <begin value="0"/>
        <end value="{scenario.duration_s}"/>
        <step-length value="1"/>
    </time>
    <processing>
        <time-to-teleport value="-1"/>
    </processing>
    <random_number>
        <seed value="{seed}"/>
    </random_number>
</configuration>
"""
    write_atomically(path, text.encode())
