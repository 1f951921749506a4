"""Random decisions: every controller must do better."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import yes_if


class Random:
    """Extend with probability one half; the seed fixes the draws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: yes_if(self._random.random() < 0.5) for name in junction_ids}
