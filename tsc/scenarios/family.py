"""Families of scenarios: many different junctions, drawn from ranges by a seed.

A family file (configs/scenarios/family_*.yaml) has ranges where a scenario file has values. The same file gives the
same members, and a longer family begins with the members of a shorter one. Numbers of stages are dealt out evenly, so
that each number in the range occurs. Layouts and numbers of approaches that lead to this number of stages are equally
likely.

The demand is drawn as a degree of saturation x. Most volumes drawn directly would leave a junction empty or flood it.
Webster's critical flow ratio Y is a sum over the stages: the flow of the stage's busiest lane group (vehicles per hour
and lane), divided by the saturation flow of 1800. L is the time lost in each cycle (yellow and all-red). A cycle of 90
s serves flows up to Y = 1 - L/90. The volumes are scaled so that in the busiest period Y = x (1 - L/90). A vehicle
that turns counts as more than one (the EQUIVALENTs below), because in SUMO vehicles are slow in bends and wait for
gaps. The green times of the net's own plan are Webster's for the largest flow of each movement, so the fixed plan suits
its demand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from tsc.errors import ConfigError
from tsc.junction.timing import Timing
from tsc.scenarios.junction_net import (
    MIN_ANGLE_BETWEEN_DEG,
    MIN_BAY_M,
    Approach,
    Junction,
    Layout,
    LeftLane,
    LeftTurn,
    Movement,
    PlannedStage,
    Turn,
    exits_by_turn,
    lanes_by_turn,
    opposing,
    planned_stages,
)
from tsc.scenarios.scenario import Demand, Scenario, Seeds, TimingSection
from tsc.yaml_file import Section, read_yaml, validate_values

SATURATION_FLOW_VEH_PER_H = 1800.0  # per lane
REFERENCE_CYCLE_S = 90.0
MAX_CYCLE_S = 120.0  # of the net's own plan
EQUIVALENTS: Mapping[Turn, float] = {"right": 1.3, "straight": 1.0, "left": 1.1}
YIELDING_EQUIVALENT = 5.0  # a left turn that waits for gaps in the oncoming traffic
PARTLY_YIELDING_EQUIVALENT = 3.0  # a left turn that waits for gaps in one stage, and does not have to in another
# the most that one entry lets in; four lanes reach it at a junction with other approaches
MAX_ENTRY_VEH_PER_H = 3000.0
PERIOD_S = 300  # the demand changes from one period to the next
# draws of one layout and number of approaches; most have another number of stages than the one asked for
_MAX_DRAWS = 60

DemandShape = Literal["flat", "rising", "peak", "tidal"]
Volumes = Mapping[Movement, float]
"""Vehicles per hour."""


class Range(Section):
    """The lowest and the highest value, both included. In the file it is a list of the two."""

    low: float
    high: float

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) != 2:
                raise ValueError(f"has {len(value)} numbers: give the lowest and the highest value")
            return dict(zip(("low", "high"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"from {self.low:g} to {self.high:g} is an empty range: give the lowest value first")
        return self

    def draw(self, draw: random.Random, *, step: float = 0.0) -> float:
        """A uniform draw. With a `step`, only low, low + step, low + 2 step, … are drawn."""
        if step:
            return self.low + step * draw.randint(0, int((self.high - self.low) // step))
        return draw.uniform(self.low, self.high)

    def whole_numbers(self) -> range:
        return range(int(self.low), int(self.high) + 1)


def _within(low: float, high: float) -> AfterValidator:
    def check(value: Range, info: ValidationInfo) -> Range:
        if value.low < low or value.high > high:
            raise ValueError(
                f"{info.field_name} from {value.low:g} to {value.high:g}: choose within {low:g} to {high:g}"
            )
        return value

    return AfterValidator(check)


class Ranges(Section):
    """The ranges that members are drawn from.

    speed_km_per_h, length_m, bay_m: drawn in steps of 10.
    bay_share: the share of the approaches with two and more lanes that widen to all their lanes only bay_m before the
    junction.
    saturation: the degree of saturation; see the module's text.
    unevenness: the flow per lane of the heaviest approach over that of the lightest.
    right_share, left_share: shares of an approach's vehicles, if it has all three turns.
    """

    approaches: Annotated[Range, _within(3, 5)]
    lanes: Annotated[Range, _within(1, 4)]
    stages: Annotated[Range, _within(2, 8)]
    speed_km_per_h: Annotated[Range, _within(20, 130)]
    length_m: Annotated[Range, _within(60, 2000)]
    bay_m: Annotated[Range, _within(40, 1000)]
    bay_share: Annotated[Range, _within(0, 1)]
    all_red_s: Annotated[Range, _within(0, 10)]
    saturation: Annotated[Range, _within(0.05, 1.2)]
    unevenness: Annotated[Range, _within(1, 10)]
    right_share: Annotated[Range, _within(0, 0.5)]
    left_share: Annotated[Range, _within(0, 0.5)]


class Family(Section):
    """A family file (configs/scenarios/family_*.yaml)."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    members: int = Field(ge=1, le=999)
    family_seed: int
    duration_s: int = Field(ge=PERIOD_S)
    timing: TimingSection
    ranges: Ranges
    layouts: tuple[Layout, ...] = Field(min_length=1)
    left_turns: tuple[LeftTurn, ...] = Field(min_length=1)
    left_lanes: tuple[LeftLane, ...] = Field(min_length=1)
    demand_shapes: tuple[DemandShape, ...] = Field(min_length=1)
    seeds: Seeds = Seeds()

    def scenarios(self) -> list[Scenario]:
        """The members, in order. Raises ConfigError if no junction in the ranges has the number of stages asked for."""
        return [self._member(number) for number in range(self.members)]

    def _member(self, number: int) -> Scenario:
        draw = random.Random(f"{self.family_seed}/member/{number}")
        stages = self.ranges.stages.whole_numbers()
        turn, place = divmod(number, len(stages))
        dealt = random.Random(f"{self.family_seed}/stages/{turn}").sample(stages, len(stages))
        approaches, layout = self._draw_junction(draw, dealt[place])
        approaches = self._with_bays(draw, approaches)
        all_red_s = int(self.ranges.all_red_s.draw(draw, step=1))
        yellow_s = yellow_time_s(max(approach.speed_m_per_s for approach in approaches))
        demand, largest = self._draw_demand(draw, approaches, layout, yellow_s + all_red_s)
        junction = Junction(
            approaches=approaches,
            layout=layout,
            green_s=webster_greens_s(approaches, layout, largest, yellow_s + all_red_s, self.timing),
            yellow_s=yellow_s,
            all_red_s=all_red_s,
        )
        return Scenario(
            name=f"{self.name}_{number + 1:02d}",
            duration_s=self.duration_s,
            junction=junction,
            timing=self.timing,
            demand=demand,
            seeds=self.seeds,
        )

    def _draw_junction(self, draw: random.Random, num_stages: int) -> tuple[tuple[Approach, ...], Layout]:
        # layout and number of approaches are drawn first, so that those that seldom lead to this number of stages are
        # as frequent as the others
        kinds = [(layout, n) for layout in self.layouts for n in self.ranges.approaches.whole_numbers()]
        for layout, num_approaches in draw.sample(kinds, len(kinds)):
            for _ in range(_MAX_DRAWS):
                approaches = self._draw_approaches(draw, num_approaches, protect_all=layout == "lead_lag")
                if approaches is None or not _suits(approaches, layout):
                    continue
                if len(planned_stages(approaches, layout)) == num_stages:
                    return approaches, layout
        raise ConfigError(
            f"family {self.name}: no junction with {num_stages} stages in {_MAX_DRAWS} draws of each layout and number "
            "of approaches: choose other stages, or more approaches, lanes, layouts or left_turns"
        )

    def _draw_approaches(
        self, draw: random.Random, num_approaches: int, *, protect_all: bool
    ) -> tuple[Approach, ...] | None:
        """Opposite approaches are one street, with equal lanes, speed and left turns. None if two are too close."""
        angles = sorted(_draw_angles(draw, num_approaches))
        if any((b - a) % 360 < MIN_ANGLE_BETWEEN_DEG for a, b in zip(angles, [*angles[1:], angles[0]], strict=True)):
            return None
        approaches = [Approach(angle_deg=angle, lanes=1, speed_m_per_s=1, length_m=100) for angle in angles]
        opposite = opposing(approaches)
        streets: dict[int, dict[str, Any]] = {}
        for number, approach in enumerate(approaches):
            street = min(number, opposite.get(number, number))
            if street not in streets:
                streets[street] = self._draw_street(draw, protect=protect_all)
            length_m = self.ranges.length_m.draw(draw, step=10)
            approaches[number] = Approach(angle_deg=approach.angle_deg, length_m=length_m, **streets[street])
        return tuple(approaches)

    def _draw_street(self, draw: random.Random, *, protect: bool) -> dict[str, Any]:
        lanes = int(self.ranges.lanes.draw(draw, step=1))
        turn: LeftTurn = "protected" if protect else draw.choice(self.left_turns)
        lane: LeftLane = "own" if turn == "protected" else draw.choice(self.left_lanes)
        if lanes == 1:
            turn, lane = "permitted", "joint"
        speed_m_per_s = round(self.ranges.speed_km_per_h.draw(draw, step=10) / 3.6, 2)
        return {"lanes": lanes, "speed_m_per_s": speed_m_per_s, "left_turn": turn, "left_lane": lane}

    def _with_bays(self, draw: random.Random, approaches: Sequence[Approach]) -> tuple[Approach, ...]:
        share = self.ranges.bay_share.draw(draw)
        found = []
        for approach in approaches:
            bay_m = min(self.ranges.bay_m.draw(draw, step=10), approach.length_m - MIN_BAY_M)
            wanted = draw.random() < share and approach.lanes > 1 and bay_m >= MIN_BAY_M
            found.append(approach.model_copy(update={"bay_m": bay_m}) if wanted else approach)
        return tuple(found)

    def _draw_demand(
        self, draw: random.Random, approaches: Sequence[Approach], layout: Layout, lost_s_per_stage: int
    ) -> tuple[Demand, Volumes]:
        """The demand, and the largest flow of each movement in vehicles per hour."""
        ranges = self.ranges
        saturation = ranges.saturation.draw(draw)
        shape = draw.choice(self.demand_shapes)
        unevenness = ranges.unevenness.draw(draw)
        weights = [approach.lanes * unevenness ** draw.random() for approach in approaches]
        shares = [_turn_shares(approaches, i, ranges, draw) for i in range(len(approaches))]
        profile = _profile(shape, approaches, self.duration_s // PERIOD_S, draw)
        periods = [
            {
                (i, turn): weights[i] * factors[i] * share
                for i in range(len(approaches))
                for turn, share in shares[i].items()
            }
            for factors in profile
        ]
        stages = planned_stages(approaches, layout)
        ratios = [critical_flow_ratio(approaches, stages, volumes) for volumes in periods]
        scale = saturation * (1 - len(stages) * lost_s_per_stage / REFERENCE_CYCLE_S) / max(ratios)
        scale = min(scale, MAX_ENTRY_VEH_PER_H / max(weights))
        demand = Demand(
            period_begin_s=[PERIOD_S * number for number in range(len(profile))],
            entries_veh_per_h={
                f"in{i}": [round(scale * weights[i] * factors[i]) for factors in profile]
                for i in range(len(approaches))
            },
            exits={f"in{i}": _exit_shares(approaches, i, shares[i]) for i in range(len(approaches))},
        )
        return demand, {movement: scale * max(volumes[movement] for volumes in periods) for movement in periods[0]}


def load_scenarios(path: Path) -> list[Scenario]:
    """The scenario of a scenario file, or all members of a family file (one with the key `members`).

    Raises ConfigError that names file, key, value and what is allowed.
    """
    values = read_yaml(path)
    if isinstance(values, dict) and "members" in values:
        return validate_values(values, Family, where=str(path)).scenarios()
    return [validate_values(values, Scenario, where=str(path))]


def yellow_time_s(speed_m_per_s: float) -> int:
    """The yellow time of the German guidelines (RiLSA): 3 s up to 50 km/h, 4 s up to 60 km/h, 5 s above."""
    return 3 + (speed_m_per_s > 51 / 3.6) + (speed_m_per_s > 61 / 3.6)


def critical_flow_ratio(approaches: Sequence[Approach], stages: Sequence[PlannedStage], volumes: Volumes) -> float:
    """Webster's Y: the least green time that serves all flows, as a share of the cycle.

    A lane group that is served in several stages in a row may use all of them. So Y is the sum of the heaviest chain of
    groups of which no two share a stage.
    """
    groups = [
        ([movement in stage.green for stage in stages], ratio)
        for movement, ratio in _flow_ratios(approaches, stages, volumes)
    ]
    return heaviest_chain(groups, len(stages))


def heaviest_chain(groups: Sequence[tuple[Sequence[bool], float]], num_stages: int) -> float:
    """The greatest sum of flow ratios of lane groups of which no two share a stage.

    groups: of each lane group, whether it has green in each stage, and its flow ratio.
    """
    heaviest = [0.0] * (num_stages + 1)
    for number in range(num_stages):
        heaviest[number + 1] = heaviest[number]
        for green, ratio in groups:
            if green[number] and (number + 1 == num_stages or not green[number + 1]):
                first = number
                while first > 0 and green[first - 1]:
                    first -= 1
                heaviest[number + 1] = max(heaviest[number + 1], heaviest[first] + ratio)
    return heaviest[-1]


def webster_greens_s(
    approaches: Sequence[Approach], layout: Layout, volumes: Volumes, lost_s_per_stage: int, timing: Timing
) -> tuple[int, ...]:
    """Webster's green times for these flows, one per stage, in a cycle of at most 120 s and within the bounds of
    `timing`."""
    stages = planned_stages(approaches, layout)
    shares = [0.0] * len(stages)
    for movement, ratio in _flow_ratios(approaches, stages, volumes):
        serving = [number for number, stage in enumerate(stages) if movement in stage.green]
        for number in serving:
            shares[number] = max(shares[number], ratio / len(serving))
    lost_s = lost_s_per_stage * len(stages)
    cycle_s = min(MAX_CYCLE_S, (1.5 * lost_s + 5) / max(0.05, 1 - sum(shares)))
    green_s = max(0.0, cycle_s - lost_s)
    return tuple(
        max(timing.min_green_s, min(timing.max_green_s, round(green_s * share / sum(shares)))) for share in shares
    )


def _flow_ratios(
    approaches: Sequence[Approach], stages: Sequence[PlannedStage], volumes: Volumes
) -> Iterator[tuple[Movement, float]]:
    """Yield each lane group, named by one of its movements, with its flow per lane over the saturation flow.

    Lanes that movements share form one group. A movement that is alone on its lanes is a group of its own as well,
    because it cannot use the other lanes.
    """
    yielding = {movement for stage in stages for movement in stage.yielding}
    partly = yielding & {movement for stage in stages for movement in stage.priority}
    for number in range(len(approaches)):
        lanes = lanes_by_turn(approaches, number)

        def flow(turn: Turn, number: int = number) -> float:
            movement = (number, turn)
            if movement in partly:
                return volumes[movement] * PARTLY_YIELDING_EQUIVALENT
            return volumes[movement] * (YIELDING_EQUIVALENT if movement in yielding else EQUIVALENTS[turn])

        for turn, of_turn in lanes.items():
            sharing: list[Turn] = [other for other, of_other in lanes.items() if set(of_turn) & set(of_other)]
            num_lanes = len({lane for other in sharing for lane in lanes[other]})
            # vehicles in the bay leave at once; the others come along the lanes before the bay
            num_lanes = min(num_lanes, approaches[number].lanes - (approaches[number].bay_m > 0))
            together = sum(flow(other) for other in sharing) / num_lanes
            ratio = max(flow(turn) / len(of_turn), together) / SATURATION_FLOW_VEH_PER_H
            yield (number, turn), ratio


def _suits(approaches: Sequence[Approach], layout: Layout) -> bool:
    """Whether these approaches allow the layout, and it differs from `incoming` for them."""
    opposite = opposing(approaches)
    if layout == "lead_lag" and any(approaches[number].left_lane == "joint" for number in opposite):
        return False
    return layout == "incoming" or bool(opposite)


def _draw_angles(draw: random.Random, num_approaches: int) -> list[float]:
    """The angles of a T or a Y, a crossing, or a crossing with a fifth approach between two others, all a little
    skewed."""
    regular: Sequence[int] = (0, 90, 180, 270, 45)[:num_approaches]
    if num_approaches == 3:
        regular = draw.choice(((0, 90, 180), (0, 120, 240)))
    turned = 360 * draw.random()
    return [round((angle + turned + draw.uniform(-12, 12)) % 360, 1) % 360 for angle in regular]


def _turn_shares(approaches: Sequence[Approach], number: int, ranges: Ranges, draw: random.Random) -> dict[Turn, float]:
    exits = exits_by_turn(approaches, number)
    right, left = ranges.right_share.draw(draw), ranges.left_share.draw(draw)
    has: list[Turn] = [turn for turn in ("right", "straight", "left") if exits[turn]]
    if "straight" not in has:
        between = draw.uniform(0.3, 0.7)
        return {"right": between, "left": 1 - between} if len(has) == 2 else {has[0]: 1.0}
    shares: dict[Turn, float] = {"right": right if "right" in has else 0.0, "left": left if "left" in has else 0.0}
    shares["straight"] = 1 - sum(shares.values())
    return {turn: shares[turn] for turn in has}


def _exit_shares(approaches: Sequence[Approach], number: int, shares: Mapping[Turn, float]) -> dict[str, float]:
    """The shares by exit edge, in thousandths that add up to 1."""
    exits = exits_by_turn(approaches, number)
    found = {
        f"out{leave}": round(share / len(exits[turn]), 3) for turn, share in shares.items() for leave in exits[turn]
    }
    largest = max(found, key=lambda name: found[name])
    found[largest] = round(found[largest] + 1 - sum(found.values()), 3)
    return found


def _profile(
    shape: DemandShape, approaches: Sequence[Approach], num_periods: int, draw: random.Random
) -> list[list[float]]:
    """For each period, one factor per approach, at most 1."""
    low = draw.uniform(0.3, 0.6)
    # the middle of each period, as a share of the episode
    times = [(number + 0.5) / num_periods for number in range(num_periods)]
    if shape == "tidal":
        # the halves of every street take turns: half of the approaches are heavy first, the others later
        opposite = opposing(approaches)
        early = {i for i in range(len(approaches)) if (i < opposite[i] if i in opposite else draw.random() < 0.5)}
        return [[1.0 if (time < 0.5) == (i in early) else low for i in range(len(approaches))] for time in times]

    def factor(time: float) -> float:
        if shape == "rising":
            return low + (1 - low) * time
        return 1 - (1 - low) * abs(2 * time - 1) if shape == "peak" else 1.0

    return [[factor(time)] * len(approaches) for time in times]
