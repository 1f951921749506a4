"""What an answer leads to: the cost of each of the two continuations, and the settings they were computed under."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tsc.decision import Decision
from tsc.errors import ConfigError
from tsc.yaml_file import load_yaml

TAILS = ("static", "gap_out", "max_pressure")
MEASURES = ("queue_veh_s",)
SCOPES = ("junction", "network")
MAX_HORIZON_S = 600


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings:
    """How a decision is judged.

    horizon_s: simulated seconds after the decision, 1 to 600.
    tail: the controller of every junction, the tested one included, after the tested decision.
    measure: queue_veh_s, halting vehicles (speed < 0.1 m/s) summed over the seconds of the horizon.
    scope: whose queue counts: `junction` (the incoming lanes of the tested junction) or `network` (of all junctions).
    """

    horizon_s: int = 45
    tail: str = "max_pressure"
    measure: str = "queue_veh_s"
    scope: str = "junction"

    def __post_init__(self) -> None:
        if not isinstance(self.horizon_s, int) or not 1 <= self.horizon_s <= MAX_HORIZON_S:
            raise ConfigError(f"horizon_s is {self.horizon_s!r}: choose whole seconds, 1–{MAX_HORIZON_S}")
        for name, value, allowed in (
            ("tail", self.tail, TAILS),
            ("measure", self.measure, MEASURES),
            ("scope", self.scope, SCOPES),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(allowed)}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _OutcomeFile(BaseModel):
    """The one section of configs/reward.yaml that labels depend on; the others are the reward's."""

    outcome: OutcomeSettings = OutcomeSettings()


def load_outcome_settings(path: Path) -> OutcomeSettings:
    """The section `outcome` of configs/reward.yaml. Raises ConfigError."""
    return load_yaml(path, _OutcomeFile).outcome


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The cost of each answer, in the unit of the measure (vehicle-seconds); smaller is better."""

    yes: float
    no: float

    def cost(self, decision: Decision) -> float:
        return self.yes if decision is Decision.YES else self.no

    def saving(self, decision: Decision) -> float:
        """What `decision` saves against the other answer."""
        return self.cost(decision.other) - self.cost(decision)

    def better(self, tie_threshold: float = 0.0) -> Decision | None:
        """The cheaper answer, None where the two differ by no more than `tie_threshold`."""
        if abs(self.yes - self.no) <= tie_threshold:
            return None
        return Decision.YES if self.yes < self.no else Decision.NO

    def as_dict(self) -> dict[str, float]:
        return {"yes": self.yes, "no": self.no}
