"""What the report and the summary say about each scenario and each controller, apart from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.evaluation.reference import Reference
from tsc.junction.timing import Timing
from tsc.sumo.signal_program import GreenBounds


@dataclass(frozen=True, kw_only=True)
class ReportedScenario:
    """A scenario as the report presents it.

    note: what a reader must know of it; it may be empty.
    junctions: those that the controllers decide for. skipped: why not, of the other signals.
    green_bounds: the shortest and longest green of each stage, where they are not those of `timing`.
    reference: what its other controllers are compared with.
    not_applicable: by controller, why it cannot run here.
    cost_unit: of what lookahead compares. sketches: by junction, a picture (PNG) of it and its stages.
    approach_names: by junction and edge, what the sketch calls the approach.
    """

    name: str
    note: str
    begin_s: int
    end_s: int
    warm_up_s: int
    timing: Timing
    junctions: Sequence[str]
    reference: Reference
    green_bounds: Sequence[GreenBounds] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    cost_unit: str = "veh·s"
    sketches: Mapping[str, bytes] = field(default_factory=dict)
    approach_names: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def bounds(self) -> str:
        """The bounds of greens, for a reader."""
        bounds = set(self.green_bounds) or {(self.timing.min_green_s, self.timing.max_green_s)}
        if len(bounds) == 1:
            [(shortest_s, longest_s)] = bounds
            return f"{shortest_s}–{longest_s} s"
        shortest, longest = zip(*bounds, strict=True)
        return f"each green its own: {_range(shortest)} s to {_range(longest)} s"

    @property
    def measured_s(self) -> int:
        return self.end_s - self.begin_s - self.warm_up_s


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}–{max(values)}" if min(values) < max(values) else str(values[0])


@dataclass(frozen=True, kw_only=True)
class ReportedTraining:
    """How a model was trained. facts: data, code and hyperparameters, by name.

    measure: what the curve shows. curve: its value by step; it may be empty.
    """

    facts: Mapping[str, str]
    measure: str
    curve: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class ReportedController:
    """A controller as the report presents it.

    description: what it does. bounds: how far it keeps to the common minimum and maximum green. training: of a model,
    where it is known.
    """

    name: str
    kind: str
    description: str
    bounds: str
    training: ReportedTraining | None = None

    @property
    def is_language_model(self) -> bool:
        return self.kind == LANGUAGE_MODEL
