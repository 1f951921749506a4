"""What a junction can see at a decision point."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tsc.errors import SampleError
from tsc.junction.signal_control import SignalControl

NEAR_M = 50.0
MID_M = 100.0
HALTING_M_PER_S = 0.1  # SUMO's threshold for a halting vehicle


@dataclass(frozen=True, kw_only=True)
class StageObservation:
    """One stage's approach: queue_veh halting vehicles; moving vehicles by distance to the stop line, near
    < 50 m ≤ mid < 100 m ≤ far; the longest present wait of one vehicle; vehicles that fit on the outgoing lanes."""

    stage: int
    queue_veh: int
    moving_near_veh: int
    moving_mid_veh: int
    moving_far_veh: int
    longest_wait_s: int
    downstream_space_veh: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A junction at a decision point; `stages` in the order they will be served, the current one first."""

    junction_id: str
    elapsed_green_s: int
    min_green_s: int
    max_green_s: int
    green_extension_s: int
    stages: tuple[StageObservation, ...]

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
    simulation = control.simulation
    stages = []
    for offset in range(len(program.stages)):
        number = (clock.stage + offset) % len(program.stages)
        stage = program.stages[number]
        moving = [0, 0, 0]
        queue_veh = 0
        longest_wait_s = 0.0
        for part in stage.approach:
            for vehicle in simulation.approaching(part.lane):
                distance_m = part.distance_m + vehicle.distance_m
                longest_wait_s = max(longest_wait_s, vehicle.waiting_time_s)
                if vehicle.speed_m_per_s < HALTING_M_PER_S:
                    queue_veh += 1
                else:
                    moving[(distance_m >= NEAR_M) + (distance_m >= MID_M)] += 1
        stages.append(
            StageObservation(
                stage=number,
                queue_veh=queue_veh,
                moving_near_veh=moving[0],
                moving_mid_veh=moving[1],
                moving_far_veh=moving[2],
                longest_wait_s=int(longest_wait_s),
                downstream_space_veh=simulation.free_space_veh(stage.outgoing_lanes),
            )
        )
    return Observation(
        junction_id=junction_id,
        elapsed_green_s=int(clock.elapsed_green_s),
        min_green_s=timing.min_green_s,
        max_green_s=timing.max_green_s,
        green_extension_s=timing.green_extension_s,
        stages=tuple(stages),
    )
