"""Several decisions of one junction in a row, from a saved state: what the policy is asked, and what it leads to.

From the state on, the policy makes a given number of the junction's decisions. The tail controller makes all others.
The stretch ends horizon_s after the policy's last decision. If the junction has no further decision point within
horizon_s of a decision, that decision is the last.

Its cost is compared with that of the tail controller, which makes every decision from the same state for as many
seconds. With one decision, the cost is that of this answer in tsc.cost.continuation.

tsc.replays.stretch_replay plays a stretch. This module does not import SUMO, so that it can be used where SUMO must not
be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# The replay for each decision repeats all decisions before it (tsc.replays.stretch_replay).
MAX_DECISIONS = 32


@dataclass(frozen=True, kw_only=True)
class Question:
    """The junction is due at time_s. prompt: the messages that a language model gets there."""

    prompt: tuple[dict[str, str], ...]
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What num_decisions decisions led to in length_s seconds.

    costs: of the measure, then of the terms in the order of settings.terms. tail_costs: the same if the tail controller
    decides alone. end: digest of the traffic at the end of the policy's stretch (Simulation.traffic_digest).
    """

    num_decisions: int
    length_s: int
    costs: tuple[float, ...]
    tail_costs: tuple[float, ...]
    end: str


@dataclass(frozen=True, kw_only=True)
class StretchProgress:
    """How far the decisions so far lead: to the next question, or to the end of the stretch. One of the two is None."""

    question: Question | None = None
    stretch: Stretch | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StretchProgress:
        """Reads what as_dict gives."""
        question, stretch = values["question"], values["stretch"]
        if question is not None:
            return cls(question=Question(prompt=tuple(question["prompt"]), time_s=question["time_s"]))
        costs = {name: tuple(stretch[name]) for name in ("costs", "tail_costs")}
        return cls(stretch=Stretch(**{**stretch, **costs}))
