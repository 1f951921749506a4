"""Lookahead: try both answers in forked simulations and take the better one. It is the ceiling for a policy that is
trained with this reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tsc.cost.continuation import outcomes_by_fork
from tsc.cost.outcome import OutcomeSettings
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl


class Lookahead:
    """Takes the answer with the lower cost; on a tie it extends. While one junction is tested, the tail runs the
    others.

    found: how often each answer was the better one. The key None counts ties.
    """

    def __init__(self, settings: OutcomeSettings) -> None:
        self.settings = settings.without_terms()
        self.found: Counter[Decision | None] = Counter()

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        better = {name: outcomes_by_fork(control, name, self.settings).better() for name in junction_ids}
        self.found.update(better.values())
        return {name: decision or Decision.YES for name, decision in better.items()}
