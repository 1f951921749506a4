"""Max-pressure."""

from __future__ import annotations

from collections.abc import Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import yes_if


class MaxPressure:
    """Extend while no other stage has a higher pressure: vehicles upstream minus vehicles downstream (Varaiya 2013)."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        decisions = {}
        for name in junction_ids:
            pressures = [
                control.simulation.vehicles_veh(stage.approach_lanes)
                - control.simulation.vehicles_veh(stage.outgoing_lanes)
                for stage in control.program(name).stages
            ]
            decisions[name] = yes_if(pressures[control.clocks[name].stage] >= max(pressures))
        return decisions
