"""The rule of SUMO's delay-based control, for the tail: computed by us, so that a replay of a state is exact."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule
from tsc.sumo.running import Delayed
from tsc.sumo.signal_program import Stage

# SUMO's defaults: detectorRange and minTimeLoss
RANGE_M = 100.0
MIN_TIME_LOSS_S = 1.0
# What happened before this controller was first asked is not known. A vehicle counts as delayed if it stood that long
# in the last 100 s, or is slower than that share of the speed limit.
STOOD_S = 1.0
SLOW = 0.5


class DelayBased(Rule):
    """Extend while a vehicle that has lost more than MIN_TIME_LOSS_S within RANGE_M of a green lane's stop line can
    still pass, at the speed limit, before the green must end. Extend, too, while no vehicle is within RANGE_M of a red
    lane's stop line.

    It remembers what each vehicle had lost when it came into range only while this controller is asked, so ask it every
    second, also when no junction is due. SUMO keeps a green above its maximum while the others are empty, we do not.
    https://sumo.dlr.de/docs/Simulation/Traffic_Lights.html
    """

    remembers = True

    def __init__(self) -> None:
        # s, by vehicle; None before it was first asked
        self._lost_before_s: dict[str, float] | None = None

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        known, now = self._lost_before_s, {}
        for name in control.clocks:
            for stage in control.program(name).stages:
                for limit_m_per_s, _, vehicle in _in_range(control, stage):
                    if known is not None:
                        lost_before_s = known.get(vehicle.name, vehicle.time_loss_s)
                    else:
                        is_slow = vehicle.speed_m_per_s < SLOW * limit_m_per_s
                        lost_before_s = 0.0 if is_slow or vehicle.stood_s >= STOOD_S else vehicle.time_loss_s
                    now[vehicle.name] = lost_before_s
        self._lost_before_s = now
        return super().decide(control, junction_ids)

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        assert self._lost_before_s is not None
        program, clock = control.program(junction_id), control.clocks[junction_id]
        stage = program.stages[clock.stage]
        left_s = control.timing_of(junction_id).max_green_s - clock.elapsed_green_s
        for limit_m_per_s, distance_m, vehicle in _in_range(control, stage):
            lost_s = vehicle.time_loss_s - self._lost_before_s[vehicle.name]
            if lost_s > MIN_TIME_LOSS_S and distance_m <= left_s * limit_m_per_s:
                return True
        green = set(stage.approach_lanes)
        return not any(True for other in program.stages for _ in _in_range(control, other, but=green))


def _in_range(
    control: SignalControl, stage: Stage, *, but: Collection[str] = ()
) -> Iterator[tuple[float, float, Delayed]]:
    """The lane's speed limit (m/s), the distance to the stop line (m) and the vehicle. but: lanes to leave out."""
    simulation = control.simulation
    for part in stage.approach:
        if part.lane not in but and part.distance_m <= RANGE_M:
            limit_m_per_s = simulation.speed_limit_m_per_s(part.lane)
            for vehicle in simulation.delayed(part.lane):
                distance_m = part.distance_m + vehicle.distance_m
                if distance_m <= RANGE_M:
                    yield limit_m_per_s, distance_m, vehicle
