"""The decisions in which a language model did not take lookahead's cheaper answer, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BIN_S = 10
_NUM_COSTLIEST = 10


@dataclass(frozen=True, kw_only=True)
class DecisionCount:
    """Counts over some decisions.

    disagreed: decisions whose other answer was cheaper. They either ended_too_early or held_too_long.
    cost: the sum over them of the chosen answer's cost minus the other answer's cost.
    """

    label: str
    decisions: int
    ties: int
    ended_too_early: int
    held_too_long: int
    cost: float

    @property
    def disagreed(self) -> int:
        return self.ended_too_early + self.held_too_long

    @property
    def share_percent(self) -> float:
        return 100 * self.disagreed / self.decisions

    @property
    def mean_cost(self) -> float | None:
        return self.cost / self.disagreed if self.disagreed else None


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """The disagreements of one controller with lookahead on one scenario.

    by_elapsed_green: counts in bins of ten seconds. by_fallback: the number of disagreements in which the fallback
    decided. costliest: records with `cost` and `seed`, the costliest first.
    """

    total: DecisionCount
    by_elapsed_green: Sequence[DecisionCount]
    by_fallback: int
    costliest: Sequence[dict[str, Any]]


def compare_with_lookahead(decisions: Sequence[dict[str, Any]]) -> Disagreements | None:
    """Count the disagreements. A tie is not a disagreement. Returns None without decisions.

    decisions: the records of OUT/decisions, each with its seed.
    """
    if not decisions:
        return None
    bins: dict[int, list[dict[str, Any]]] = {}
    for record in decisions:
        bins.setdefault(int(record["elapsed_green_s"] // _BIN_S) * _BIN_S, []).append(record)
    wrong = [{**record, "cost": cost} for record in decisions if (cost := cost_of(record)) > 0]
    costliest = sorted(wrong, key=lambda r: (-r["cost"], r["seed"], r["time_s"], r["junction_id"]))
    return Disagreements(
        total=_count("all", decisions),
        by_elapsed_green=[_count(f"{low}–{low + _BIN_S - 1} s", bins[low]) for low in sorted(bins)],
        by_fallback=sum(record["fallback"] is not None for record in wrong),
        costliest=costliest[:_NUM_COSTLIEST],
    )


def cost_of(record: dict[str, Any]) -> float:
    """The cost of the decision that was carried out, minus the cost of the cheaper answer."""
    outcomes = record["outcomes"]
    return float(outcomes[record["decision"]] - min(outcomes["yes"], outcomes["no"]))


def _count(label: str, decisions: Sequence[dict[str, Any]]) -> DecisionCount:
    wrong = [record["decision"] for record in decisions if cost_of(record) > 0]
    return DecisionCount(
        label=label,
        decisions=len(decisions),
        ties=sum(record["outcomes"]["yes"] == record["outcomes"]["no"] for record in decisions),
        ended_too_early=wrong.count("no"),
        held_too_long=wrong.count("yes"),
        cost=sum(cost_of(record) for record in decisions),
    )
