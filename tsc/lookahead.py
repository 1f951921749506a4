"""Lookahead: try both answers in forked simulations and take the better; the ceiling for a policy of this reward."""

from __future__ import annotations

from collections.abc import Sequence

from tsc.continuation import outcomes_by_fork
from tsc.decision import Decision
from tsc.outcome import OutcomeSettings
from tsc.signal_control import SignalControl


class Lookahead:
    """Takes the answer with the lower cost; on a tie it extends. Each due junction is tested with all others run by
    the tail."""

    def __init__(self, settings: OutcomeSettings) -> None:
        self.settings = settings.without_terms()

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: outcomes_by_fork(control, name, self.settings).better() or Decision.YES for name in junction_ids}
