"""The net's own plan, followed at decision points."""

from __future__ import annotations

from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule


class Static(Rule):
    """Extend until the decision point that is nearest to the end of the program's own green."""

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        clock = control.clocks[junction_id]
        reached_s = clock.elapsed_green_s + control.timing.green_extension_s / 2
        return reached_s <= control.program(junction_id).stages[clock.stage].duration_s
