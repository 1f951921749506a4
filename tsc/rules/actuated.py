"""The rule of SUMO's actuated control, for the tail: computed by us, so that a replay from a saved state is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule

# SUMO's defaults: max-gap, detector-gap, and the length of a passenger car
MAX_GAP_S = 3.0
DETECTOR_GAP_S = 2.0
VEHICLE_LENGTH_M = 5.0


class Actuated(Rule):
    """Extend while a vehicle has left the detectors of the green lanes less than MAX_GAP_S ago, or is on one.

    A detector lies DETECTOR_GAP_S of travel at the lane's speed limit before the stop line. It remembers the last
    vehicle only while this controller is asked, so ask it every second, also when no junction is due. What happened
    before is estimated from the vehicles between detector and stop line, by their present speed.
    https://sumo.dlr.de/docs/Simulation/Traffic_Lights.html
    """

    remembers = True

    def __init__(self) -> None:
        self._left_s: dict[str, float] = {}

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        for name, clock in control.clocks.items():
            if clock.green:
                self._left_s[name] = max(self._left_s.get(name, -math.inf), _left_s(control, name, clock.stage))
            else:
                self._left_s.pop(name, None)
        return super().decide(control, junction_ids)

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        return control.simulation.time_s - self._left_s[junction_id] < MAX_GAP_S


def _left_s(control: SignalControl, junction_id: str, stage: int) -> float:
    """When the last vehicle that is now before the stop line left a detector (s); now if one is on it."""
    simulation = control.simulation
    now_s, last_s = simulation.time_s, -math.inf
    for part in control.program(junction_id).stages[stage].approach:
        detector_m = DETECTOR_GAP_S * simulation.speed_limit_m_per_s(part.lane)
        for vehicle in simulation.approaching(part.lane):
            # of the vehicle's rear, from the detector towards the stop line
            beyond_m = detector_m - (part.distance_m + vehicle.distance_m + VEHICLE_LENGTH_M)
            if -VEHICLE_LENGTH_M <= beyond_m <= 0:
                return now_s
            if beyond_m > 0 and vehicle.speed_m_per_s > 0:
                last_s = max(last_s, now_s - beyond_m / vehicle.speed_m_per_s)
    return last_s
