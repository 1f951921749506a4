"""Longest queue first."""

from __future__ import annotations

from collections.abc import Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import yes_if


class LongestQueue:
    """Extend while no other stage has a longer queue (halting vehicles on its approach lanes)."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        decisions = {}
        for name in junction_ids:
            queues_veh = [control.simulation.queue_veh(stage.approach_lanes) for stage in control.program(name).stages]
            decisions[name] = yes_if(queues_veh[control.clocks[name].stage] >= max(queues_veh))
        return decisions
