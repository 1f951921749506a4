"""Gap-out: the rule of actuated signals."""

from __future__ import annotations

from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule

# A vehicle closer than this holds its green: 3.2 s at 50 km/h, about the usual maximum time gap of actuated control.
GAP_OUT_DISTANCE_M = 45.0


class GapOut(Rule):
    """Extend while a vehicle is within GAP_OUT_DISTANCE_M of the stop line, on the way to a green lane."""

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        stage = control.program(junction_id).stages[control.clocks[junction_id].stage]
        return any(
            part.distance_m + vehicle.distance_m < GAP_OUT_DISTANCE_M
            for part in stage.approach
            for vehicle in control.simulation.approaching(part.lane)
        )
