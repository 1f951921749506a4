"""Random decisions: every controller must do better."""

from __future__ import annotations

import random

from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule


class Random(Rule):
    """Extend with probability one half; the seed fixes the draws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        return self._random.random() < 0.5
