"""Chance: what any controller must beat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tsc.controllers.controller import yes_if
from tsc.decision import Decision
from tsc.signal_control import SignalControl


class Random:
    """Extend with probability one half, drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: yes_if(self._random.random() < 0.5) for name in junction_ids}
