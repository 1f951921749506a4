"""Longest queue first."""

from __future__ import annotations

from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule


class LongestQueue(Rule):
    """Extend while no other stage has a longer queue (halting vehicles on its approach lanes)."""

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        stages = control.program(junction_id).stages
        queues_veh = [control.simulation.queue_veh(stage.approach_lanes) for stage in stages]
        return queues_veh[control.clocks[junction_id].stage] >= max(queues_veh)
