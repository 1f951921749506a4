"""What the report and the summary say about each scenario and each controller, apart from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.junction.timing import Timing


@dataclass(frozen=True, kw_only=True)
class ReportedScenario:
    """A scenario as the report presents it.

    note: what a reader must know of it; it may be empty.
    junctions: those that the controllers decide for.
    not_applicable: by controller, why it cannot run here.
    """

    name: str
    note: str
    begin_s: int
    end_s: int
    warm_up_s: int
    timing: Timing
    junctions: Sequence[str]
    not_applicable: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured_s(self) -> int:
        return self.end_s - self.begin_s - self.warm_up_s


@dataclass(frozen=True, kw_only=True)
class ReportedController:
    """A controller as the report presents it.

    description: what it does. bounds: how far it keeps to the common minimum and maximum green.
    """

    name: str
    kind: str
    description: str
    bounds: str

    @property
    def is_language_model(self) -> bool:
        return self.kind == LANGUAGE_MODEL
