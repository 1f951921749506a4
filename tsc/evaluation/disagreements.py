"""Where a language model decided otherwise than lookahead would have, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BIN_S = 10
_NUM_COSTLIEST = 10


@dataclass(frozen=True, kw_only=True)
class DecisionCount:
    """Some decisions. disagreed: those that were carried out although the other answer was cheaper; ended_too_early
    and held_too_long are its two kinds. cost: of all of them together, each the carried out answer's cost minus that
    of the other one."""

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
    """Of one controller on one scenario. by_elapsed_green: in bins of ten seconds. costliest: records with `cost` and
    `seed`, the costliest first. by_fallback: of the disagreements, those in which the fallback had decided."""

    total: DecisionCount
    by_elapsed_green: Sequence[DecisionCount]
    by_fallback: int
    costliest: Sequence[dict[str, Any]]


def compare_with_lookahead(decisions: Sequence[dict[str, Any]]) -> Disagreements | None:
    """decisions: as OUT/decisions holds them, with their seed. None where there is none. A tie is no disagreement."""
    if not decisions:
        return None
    costs = [cost_of(record) for record in decisions]
    bins: dict[int, list[dict[str, Any]]] = {}
    for record in decisions:
        bins.setdefault(int(record["elapsed_green_s"] // _BIN_S) * _BIN_S, []).append(record)
    wrong = [{**record, "cost": cost} for record, cost in zip(decisions, costs, strict=True) if cost > 0]
    costliest = sorted(wrong, key=lambda r: (-r["cost"], r["seed"], r["time_s"], r["junction_id"]))
    return Disagreements(
        total=_count("all", decisions),
        by_elapsed_green=[_count(f"{low}–{low + _BIN_S - 1} s", bins[low]) for low in sorted(bins)],
        by_fallback=sum(record["fallback"] is not None for record in wrong),
        costliest=costliest[:_NUM_COSTLIEST],
    )


def cost_of(record: dict[str, Any]) -> float:
    """Of what was carried out, above the cheaper answer."""
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
