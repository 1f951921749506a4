"""A linear rule for each stage: extend its green while the weighed counts of the detectors are not negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsc.junction.signal_control import SignalControl
from tsc.programs.detectors import JunctionDetectors
from tsc.rules.controller import Rule


@dataclass(frozen=True, kw_only=True)
class LinearRule:
    """Extend if weights · counts + bias ≥ 0. weights: one for each feature of JunctionDetectors."""

    weights: tuple[int, ...]
    bias: int

    def extends(self, counts: Sequence[int]) -> bool:
        return sum(weight * count for weight, count in zip(self.weights, counts, strict=True)) + self.bias >= 0


class LinearProgram(Rule):
    """The rules in our loop, at decision points, for junctions whose detectors are loaded.

    rules: by junction, one for each stage.
    """

    def __init__(self, detectors: Mapping[str, JunctionDetectors], rules: Mapping[str, Sequence[LinearRule]]) -> None:
        self._detectors = detectors
        self._rules = rules

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        counts = self._detectors[junction_id].features(control.simulation.detected_veh)
        return self._rules[junction_id][control.clocks[junction_id].stage].extends(counts)
