"""Max-pressure."""

from __future__ import annotations

from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule


class MaxPressure(Rule):
    """Extend while no other stage has a higher pressure: vehicles upstream minus vehicles downstream (Varaiya 2013)."""

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        vehicles_veh = control.simulation.vehicles_veh
        pressures = [
            vehicles_veh(stage.approach_lanes) - vehicles_veh(stage.outgoing_lanes)
            for stage in control.program(junction_id).stages
        ]
        return pressures[control.clocks[junction_id].stage] >= max(pressures)
