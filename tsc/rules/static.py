"""The net's own plan, followed at decision points."""

from __future__ import annotations

from collections.abc import Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import yes_if


class Static:
    """Extend until the decision point that is nearest to the end of the program's own green."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        decisions = {}
        for name in junction_ids:
            clock = control.clocks[name]
            planned_s = control.program(name).stages[clock.stage].duration_s
            reached_s = clock.elapsed_green_s + control.timing.green_extension_s / 2
            decisions[name] = yes_if(reached_s <= planned_s)
        return decisions
