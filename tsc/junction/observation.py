"""What a junction can see at a decision point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tsc.errors import SampleError
from tsc.junction.signal_control import SignalControl
from tsc.sumo.running import Approaching
from tsc.sumo.signal_program import LaneGroup, Stage

NEAR_M = 50.0
MID_M = 100.0
HALTING_M_PER_S = 0.1  # SUMO's threshold for a halting vehicle


@dataclass(frozen=True, kw_only=True)
class ApproachObservation:
    """queue_veh halting vehicles; moving vehicles by distance to the stop line, near < 50 m ≤ mid < 100 m ≤ far; the
    longest present wait of one vehicle; vehicles that fit on the outgoing lanes."""

    queue_veh: int
    moving_near_veh: int
    moving_mid_veh: int
    moving_far_veh: int
    longest_wait_s: int
    downstream_space_veh: int


@dataclass(frozen=True, kw_only=True)
class StageObservation(ApproachObservation):
    """The approach of one stage. A lane that leads to several stages counts for each of them."""

    stage: int


@dataclass(frozen=True, kw_only=True)
class LaneGroupObservation(ApproachObservation):
    """The lanes that lead to the same stages. turns: when these will be served, ascending; 0 is the current green."""

    turns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A junction at a decision point; `stages` in the order they will be served, the current one first.

    lane_groups: by their turns. Empty where each stage has lanes of its own.
    """

    junction_id: str
    elapsed_green_s: int
    min_green_s: int
    max_green_s: int
    green_extension_s: int
    stages: tuple[StageObservation, ...]
    lane_groups: tuple[LaneGroupObservation, ...] = ()

    @property
    def by_turns(self) -> dict[tuple[int, ...], ApproachObservation]:
        """What is seen of the lanes, each lane once, by the turns at which they will be served."""
        if self.lane_groups:
            return {group.turns: group for group in self.lane_groups}
        return {(turn,): stage for turn, stage in enumerate(self.stages)}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Observation:
        """Reads what as_dict gives. Raises SampleError that names the first field that is missing or is not what it
        should be."""
        try:
            return _READER.validate_python(values)
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, ("observation", *detail["loc"])))
            raise SampleError(f"{field} is not as generate_dataset writes it: {detail['msg']}") from error


_READER = TypeAdapter(Observation)


def observe(control: SignalControl, junction_id: str) -> Observation:
    """Raises UnknownJunction."""
    program = control.program(junction_id)
    clock, timing = control.clocks[junction_id], control.timing_of(junction_id)
    num_stages = len(program.stages)
    seen = {
        lane: control.simulation.approaching(lane)
        for lane in dict.fromkeys(part.lane for stage in program.stages for part in stage.approach)
    }

    def counts(of: Stage | LaneGroup) -> dict[str, int]:
        return _counts(of, seen) | {"downstream_space_veh": control.simulation.free_space_veh(of.outgoing_lanes)}

    order = [(clock.stage + turn) % num_stages for turn in range(num_stages)]
    groups = {
        tuple(sorted((number - clock.stage) % num_stages for number in group.stages)): group
        for group in program.lane_groups
    }
    shares_lanes = any(len(turns) > 1 for turns in groups)
    return Observation(
        junction_id=junction_id,
        elapsed_green_s=int(clock.elapsed_green_s),
        min_green_s=timing.min_green_s,
        max_green_s=timing.max_green_s,
        green_extension_s=timing.green_extension_s,
        stages=tuple(StageObservation(stage=number, **counts(program.stages[number])) for number in order),
        lane_groups=tuple(
            LaneGroupObservation(turns=turns, **counts(groups[turns])) for turns in sorted(groups) if shares_lanes
        ),
    )


def _counts(of: Stage | LaneGroup, seen: Mapping[str, Sequence[Approaching]]) -> dict[str, int]:
    queue_veh, moving, longest_wait_s = 0, [0, 0, 0], 0.0
    for part in of.approach:
        for vehicle in seen[part.lane]:
            distance_m = part.distance_m + vehicle.distance_m
            longest_wait_s = max(longest_wait_s, vehicle.waiting_time_s)
            if vehicle.speed_m_per_s < HALTING_M_PER_S:
                queue_veh += 1
            else:
                moving[(distance_m >= NEAR_M) + (distance_m >= MID_M)] += 1
    return {
        "queue_veh": queue_veh,
        "moving_near_veh": moving[0],
        "moving_mid_veh": moving[1],
        "moving_far_veh": moving[2],
        "longest_wait_s": int(longest_wait_s),
    }
