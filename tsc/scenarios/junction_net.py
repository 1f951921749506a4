"""A single junction, built from its approaches: lanes, turns, stages and signal program, written by SUMO's netconvert.

netgenerate makes only regular grids. Here each approach has its own angle, lanes, speed and length, and the stages
follow from the layout. Edges are named in0, out0, in1, … in the order of the approaches. The junction is named
`junction`. If an approach widens before it, bay0 is the wide part of in0. Traffic keeps to the right. netconvert
decides who yields to whom.

Stages, by layout. Two approaches oppose each other if each is straight ahead of the other.
    opposites  opposing approaches share a stage. Protected left turns get a stage of their own after it; if only one of
               the two approaches turns left, all of that approach stays green for it
    incoming   one stage per approach, with all its movements
    lead_lag   of two opposing approaches first one alone, then both without left turns, then the other alone
An approach that no other opposes has a stage to itself.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tsc.sumo.binaries import write_net
from tsc.yaml_file import Section

Turn = Literal["right", "straight", "left"]
Layout = Literal["opposites", "incoming", "lead_lag"]
LeftTurn = Literal["permitted", "protected", "both"]
LeftLane = Literal["joint", "own"]
Movement = tuple[int, Turn]
"""The vehicles of an approach (by its place in the list) that turn one way."""

JUNCTION_ID = "junction"
MIN_ANGLE_BETWEEN_DEG = 30.0
MIN_BAY_M = 40.0
# an exit that departs no more than this from the direction of travel is straight ahead
_STRAIGHT_WITHIN_DEG = 45.0


class Approach(Section):
    """One road into the junction.

    angle_deg: the direction that it comes from, seen from the junction, clockwise from north.
    length_m: to the middle of the junction.
    left_turn: yields to oncoming traffic (permitted), has a stage without it (protected), or first yields and then has
    a stage (both).
    left_lane: shared with straight on (joint), or a lane of its own (own).
    bay_m: the road has one lane fewer until so far before the middle of the junction; 0: all lanes from its begin.
    """

    angle_deg: float = Field(ge=0, lt=360)
    lanes: int = Field(ge=1, le=4)
    speed_m_per_s: float = Field(gt=0, le=40)
    length_m: float = Field(ge=60, le=2000)
    left_turn: LeftTurn = "permitted"
    left_lane: LeftLane = "joint"
    bay_m: float = Field(default=0, ge=0, le=1000)

    @model_validator(mode="after")
    def _bay_has_room(self) -> Approach:
        if self.bay_m and (self.lanes == 1 or not MIN_BAY_M <= self.bay_m <= self.length_m - MIN_BAY_M):
            raise ValueError(
                f"bay_m of {self.bay_m:g} with {self.lanes} lane(s) and length_m {self.length_m:g}: choose 0, or "
                f"{MIN_BAY_M:g} to length_m - {MIN_BAY_M:g} with at least 2 lanes"
            )
        return self


class Junction(Section):
    """The section `junction` of a scenario. green_s: the greens of the net's own plan, one per stage, in the layout's
    order."""

    approaches: tuple[Approach, ...] = Field(min_length=3, max_length=6)
    layout: Layout
    green_s: tuple[int, ...]
    yellow_s: int = Field(default=3, ge=1, le=10)
    all_red_s: int = Field(default=1, ge=0, le=10)

    @model_validator(mode="after")
    def _can_be_built(self) -> Junction:
        angles = sorted(approach.angle_deg for approach in self.approaches)
        between = min((b - a) % 360 for a, b in zip(angles, [*angles[1:], angles[0] + 360], strict=True))
        if between < MIN_ANGLE_BETWEEN_DEG:
            raise ValueError(
                f"two approaches are {between:g}° apart: choose angle_deg at least {MIN_ANGLE_BETWEEN_DEG:g}° apart"
            )
        for number, approach in enumerate(self.approaches):
            turns = exits_by_turn(self.approaches, number)
            if not (turns["left"] and turns["straight"]):
                continue
            if approach.left_lane == "own" and approach.lanes == 1:
                raise ValueError(
                    f"approach {number} has 1 lane, but left_lane own needs one besides: choose lanes of at least 2, "
                    "or left_lane joint"
                )
            if approach.left_turn == "protected" and approach.left_lane == "joint":
                raise ValueError(
                    f"approach {number}: left_turn protected needs left_lane own, for what waits to turn left would "
                    "block the way straight on; or choose left_turn both"
                )
        if self.layout == "lead_lag":
            for number in opposing(self.approaches):
                if exits_by_turn(self.approaches, number)["left"] and self.approaches[number].left_turn != "protected":
                    raise ValueError(f"layout lead_lag: approach {number} needs left_turn protected")
        num_stages = len(planned_stages(self.approaches, self.layout))
        if len(self.green_s) != num_stages or min(self.green_s) < 5:
            raise ValueError(
                f"green_s has {len(self.green_s)} times, the least {min(self.green_s, default=0)} s: "
                f"give {num_stages}, one a stage, each at least 5 s"
            )
        return self

    @property
    def stages(self) -> list[PlannedStage]:
        return planned_stages(self.approaches, self.layout)


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """The movements that are green: those with priority, and those that yield to oncoming traffic."""

    priority: frozenset[Movement]
    yielding: frozenset[Movement] = frozenset()

    @property
    def green(self) -> frozenset[Movement]:
        return self.priority | self.yielding


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection from a lane of an approach to a lane of the exit beside approach `exit`. Lanes count from the right,
    from 0."""

    approach: int
    lane: int
    exit: int
    exit_lane: int
    turn: Turn


def exits_by_turn(approaches: Sequence[Approach], number: int) -> dict[Turn, list[int]]:
    """The exits (named by their approaches) to the right of straight on, straight on, and to the left; each list from
    right to left. If no exit is straight ahead, `straight` is empty."""
    travel_deg = approaches[number].angle_deg + 180

    def to_the_right_deg(other: int) -> float:
        return (approaches[other].angle_deg - travel_deg + 180) % 360 - 180

    others = sorted((i for i in range(len(approaches)) if i != number), key=to_the_right_deg, reverse=True)
    ahead = min(others, key=lambda other: abs(to_the_right_deg(other)))
    middle_deg = to_the_right_deg(ahead)
    if abs(middle_deg) > _STRAIGHT_WITHIN_DEG:
        middle_deg = 0.0
    return {
        "right": [other for other in others if to_the_right_deg(other) > middle_deg],
        "straight": [other for other in others if to_the_right_deg(other) == middle_deg],
        "left": [other for other in others if to_the_right_deg(other) < middle_deg],
    }


def opposing(approaches: Sequence[Approach]) -> dict[int, int]:
    """For each approach that has one opposite, the number of that approach."""
    ahead = [exits_by_turn(approaches, number)["straight"] for number in range(len(approaches))]
    return {a: exits[0] for a, exits in enumerate(ahead) if exits and ahead[exits[0]] == [a]}


def lanes_by_turn(approaches: Sequence[Approach], number: int) -> dict[Turn, range]:
    """For each turn that the approach has, the lanes that serve it, counted from the right."""
    lanes, exits = approaches[number].lanes, exits_by_turn(approaches, number)
    right, left = bool(exits["right"]), bool(exits["left"])
    found: dict[Turn, range] = {}
    if exits["straight"]:
        own_left = left and approaches[number].left_lane == "own"
        found["straight"] = range(lanes - own_left)
        if right:
            found["right"] = range(1)
        if left:
            found["left"] = range(lanes - 1, lanes)
    elif right and left:
        found["right"] = range(max(1, lanes // 2))
        found["left"] = range(lanes // 2, lanes)
    else:
        found["right" if right else "left"] = range(lanes)
    return found


def planned_stages(approaches: Sequence[Approach], layout: Layout) -> list[PlannedStage]:
    """The stages in their order, as the module's text describes them."""
    movements: dict[int, set[Movement]] = {
        number: {(number, turn) for turn in lanes_by_turn(approaches, number)} for number in range(len(approaches))
    }
    opposite = opposing(approaches) if layout != "incoming" else {}
    stages = []
    for number in range(len(approaches)):
        other = opposite.get(number)
        if other is None:
            stages.append(PlannedStage(priority=frozenset(movements[number])))
        elif number < other:
            both = movements[number] | movements[other]
            lefts = {movement for movement in both if movement[1] == "left"}
            yielding = {movement for movement in lefts if approaches[movement[0]].left_turn != "protected"}
            together = PlannedStage(priority=frozenset(both - lefts), yielding=frozenset(yielding))
            if layout == "lead_lag":
                alone = [
                    [PlannedStage(priority=frozenset(movements[each]))] if (each, "left") in lefts else []
                    for each in (number, other)
                ]
                stages += [*alone[0], together, *alone[1]]
                continue
            stages.append(together)
            after = {movement for movement in lefts if approaches[movement[0]].left_turn != "permitted"}
            if after:
                (first, *more) = {movement[0] for movement in lefts}
                stages.append(PlannedStage(priority=frozenset(after if more else movements[first])))
    return stages


def links_of(approaches: Sequence[Approach]) -> list[Link]:
    """The connections in the order of the signal indices: by approach, then its lanes from the right, then their exits
    from the right."""
    num_exit_lanes = exit_lanes(approaches)
    links = []
    for number, approach in enumerate(approaches):
        exits, lanes = exits_by_turn(approaches, number), lanes_by_turn(approaches, number)
        for lane in range(approach.lanes):
            for turn, of_turn in sorted(lanes.items(), key=lambda item: ("right", "straight", "left").index(item[0])):
                if lane not in of_turn:
                    continue
                for leave in exits[turn]:
                    # right turns keep to the right of the exit, left turns to its left
                    offset = num_exit_lanes[leave] - len(of_turn) if turn == "left" else 0
                    links.append(
                        Link(approach=number, lane=lane, exit=leave, exit_lane=offset + lane - of_turn[0], turn=turn)
                    )
    return links


def exit_lanes(approaches: Sequence[Approach]) -> list[int]:
    """The number of lanes that each exit needs so that no two lanes of one approach lead to the same lane."""
    needed = [1] * len(approaches)
    for number in range(len(approaches)):
        lanes = lanes_by_turn(approaches, number)
        for turn, exits in exits_by_turn(approaches, number).items():
            for leave in exits:
                needed[leave] = max(needed[leave], len(lanes[turn]))
    return needed


def signal_phases(junction: Junction) -> list[tuple[str, int]]:
    """(state, duration in s) of every phase: each stage, then its yellow, then all-red if it lasts at least 1 s."""
    links, stages = links_of(junction.approaches), junction.stages

    def letter(link: Link, stage: PlannedStage) -> str:
        movement = (link.approach, link.turn)
        return "G" if movement in stage.priority else "g" if movement in stage.yielding else "r"

    states = ["".join(letter(link, stage) for link in links) for stage in stages]
    phases = []
    for number, (state, green_s) in enumerate(zip(states, junction.green_s, strict=True)):
        following = states[(number + 1) % len(states)]
        phases.append((state, green_s))
        for ending, duration_s in (("y", junction.yellow_s), ("r", junction.all_red_s)):
            between = "".join(
                now if now == "r" or then != "r" else ending for now, then in zip(state, following, strict=True)
            )
            if duration_s:
                phases.append((between, duration_s))
    return phases


def stop_line_edge(approaches: Sequence[Approach], number: int) -> str:
    """The name of the edge of an approach that ends at the junction."""
    return f"bay{number}" if approaches[number].bay_m else f"in{number}"


def _node(name: str, kind: str, angle_deg: float, distance_m: float) -> str:
    angle = math.radians(angle_deg)
    x, y = distance_m * math.sin(angle), distance_m * math.cos(angle)
    return f'<node id="{name}" x="{x:.2f}" y="{y:.2f}" type="{kind}"/>'


def build_junction_net(junction: Junction, path: Path, *, what: str) -> None:
    """Write the net with netconvert. The same junction gives the same bytes. Raises ScenarioError with netconvert's
    words."""
    approaches = junction.approaches
    nodes = [f'<node id="{JUNCTION_ID}" x="0" y="0" type="traffic_light"/>']
    edges, widenings = [], []
    for number, (approach, num_exit_lanes) in enumerate(zip(approaches, exit_lanes(approaches), strict=True)):
        end, widens = f"end{number}", f"widens{number}"
        nodes.append(_node(end, "dead_end", approach.angle_deg, approach.length_m))
        ways = [(f"out{number}", JUNCTION_ID, end, num_exit_lanes)]
        if approach.bay_m:
            nodes.append(_node(widens, "priority", approach.angle_deg, approach.bay_m))
            narrow = approach.lanes - 1
            ways += [
                (f"in{number}", end, widens, narrow),
                (f"bay{number}", widens, JUNCTION_ID, approach.lanes),
            ]
            # the new lane is the left one
            widenings += [
                f'from="in{number}" to="bay{number}" fromLane="{min(lane, narrow - 1)}" toLane="{lane}"'
                for lane in range(approach.lanes)
            ]
        else:
            ways.append((f"in{number}", end, JUNCTION_ID, approach.lanes))
        edges += [
            f'<edge id="{name}" from="{begin}" to="{to}" numLanes="{lanes}" speed="{approach.speed_m_per_s:.2f}"/>'
            for name, begin, to, lanes in ways
        ]
    links = [
        f'from="{stop_line_edge(approaches, link.approach)}" to="out{link.exit}" fromLane="{link.lane}" '
        f'toLane="{link.exit_lane}"'
        for link in links_of(approaches)
    ]
    phases = [f'<phase duration="{duration_s}" state="{state}"/>' for state, duration_s in signal_phases(junction)]
    program = [f'<tlLogic id="{JUNCTION_ID}" type="static" programID="0" offset="0">', *phases, "</tlLogic>"]
    controlled = [f'<connection {link} tl="{JUNCTION_ID}" linkIndex="{index}"/>' for index, link in enumerate(links)]
    files = {
        "node": ("nodes", nodes),
        "edge": ("edges", edges),
        "connection": ("connections", [f"<connection {link}/>" for link in (*widenings, *links)]),
        "tllogic": ("tlLogics", [*program, *controlled]),
    }
    with tempfile.TemporaryDirectory(prefix="tsc-junction-") as folder:
        options = ["--no-turnarounds", "true", "--offset.disable-normalization", "true", "--no-warnings", "true"]
        for kind, (root, lines) in files.items():
            file = Path(folder, f"{kind}.xml")
            file.write_text("\n".join([f"<{root}>", *lines, f"</{root}>", ""]), encoding="utf-8")
            options += [f"--{kind}-files", str(file)]
        write_net("netconvert", options, path, what=what)
