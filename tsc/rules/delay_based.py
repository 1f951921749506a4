"""The rule of SUMO's delay-based control, for the tail: computed by us, so that a replay of a state is exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule
from tsc.sumo.running import Delayed
from tsc.sumo.signal_program import ApproachLane

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
        # now, by junction
        self._near: dict[str, dict[ApproachLane, list[_Near]]] = {}

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        self._near = {name: _near(control, name) for name in control.clocks}
        known, now = self._lost_before_s, {}
        for near in itertools.chain.from_iterable(lanes for of in self._near.values() for lanes in of.values()):
            vehicle = near.vehicle
            if known is not None:
                now[vehicle.name] = known.get(vehicle.name, vehicle.time_loss_s)
            else:
                is_slow = vehicle.speed_m_per_s < SLOW * near.limit_m_per_s
                now[vehicle.name] = 0.0 if is_slow or vehicle.stood_s >= STOOD_S else vehicle.time_loss_s
        self._lost_before_s = now
        return super().decide(control, junction_ids)

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        assert self._lost_before_s is not None
        clock, near = control.clocks[junction_id], self._near[junction_id]
        stage = control.program(junction_id).stages[clock.stage]
        left_s = control.timing_of(junction_id).max_green_s - clock.elapsed_green_s
        for limit_m_per_s, distance_m, vehicle in itertools.chain.from_iterable(map(near.__getitem__, stage.approach)):
            lost_s = vehicle.time_loss_s - self._lost_before_s[vehicle.name]
            if lost_s > MIN_TIME_LOSS_S and distance_m <= left_s * limit_m_per_s:
                return True
        green = set(stage.approach_lanes)
        return not any(vehicles for part, vehicles in near.items() if part.lane not in green)


class _Near(NamedTuple):
    """A vehicle in range: the speed limit of its lane (m/s), and its distance to the stop line (m)."""

    limit_m_per_s: float
    distance_m: float
    vehicle: Delayed


def _near(control: SignalControl, junction_id: str) -> dict[ApproachLane, list[_Near]]:
    """The vehicles in range, for each lane of the approaches."""
    simulation = control.simulation
    found: dict[ApproachLane, list[_Near]] = {}
    for part in itertools.chain.from_iterable(stage.approach for stage in control.program(junction_id).stages):
        if part not in found:
            limit_m_per_s = simulation.speed_limit_m_per_s(part.lane)
            vehicles = simulation.delayed(part.lane) if part.distance_m <= RANGE_M else []
            near = (_Near(limit_m_per_s, part.distance_m + vehicle.distance_m, vehicle) for vehicle in vehicles)
            found[part] = [each for each in near if each.distance_m <= RANGE_M]
    return found
