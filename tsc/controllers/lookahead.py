"""Lookahead: try both answers in forked simulations and take the better one, which is what the reward calls best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tsc.cost.continuation import outcomes_of
from tsc.cost.outcome import OutcomeSettings
from tsc.cost.shared_continuations import SharedContinuations
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
        self._continuations: SharedContinuations | None = None

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        if self._continuations is None:
            self._continuations = SharedContinuations(control, self.settings)
        found = self._continuations.of(junction_ids)
        better = {name: outcomes_of(each, self.settings).better() for name, each in found.items()}
        self.found.update(better.values())
        decisions = {name: decision or Decision.YES for name, decision in better.items()}
        self._continuations.chose(decisions)
        return decisions
