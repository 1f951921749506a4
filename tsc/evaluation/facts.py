"""What the results are told with: of each scenario and each controller, what a reader has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.junction.timing import Timing


@dataclass(frozen=True, kw_only=True)
class ScenarioFacts:
    """note: what a reader must know of it; may be empty. junctions: the controlled ones. not_applicable: of the
    controllers that cannot run here, the reason."""

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
class ControllerFacts:
    """description: what it does; bounds: how far it keeps to the common minimum and maximum green."""

    name: str
    kind: str
    description: str
    bounds: str

    @property
    def is_language_model(self) -> bool:
        return self.kind == LANGUAGE_MODEL
