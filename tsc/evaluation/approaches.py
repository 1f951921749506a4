"""Delay and queue on each approach of the junctions, and the level of service that traffic engineers read off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Delay up to which a level holds (s per vehicle), at signals: Highway Capacity Manual, 6th edition, exhibit 19-8.
LEVELS = ((10.0, "A"), (20.0, "B"), (35.0, "C"), (55.0, "D"), (80.0, "E"))
WORST_LEVEL = "F"
# a row that stands for all approaches of a junction
ALL = "all approaches"


@dataclass(frozen=True, kw_only=True)
class Approach:
    """Means over the episodes, except the delay, which is that of a vehicle over all episodes. p95_queue_veh is None of
    several approaches together."""

    vehicles: float
    delay_s: float | None
    mean_queue_veh: float
    p95_queue_veh: float | None

    @property
    def level(self) -> str | None:
        """The level of service, from A to F, by the delay alone."""
        if self.delay_s is None:
            return None
        return next((level for limit_s, level in LEVELS if self.delay_s <= limit_s), WORST_LEVEL)


def by_approach(episodes: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Approach]:
    """By junction and edge, and by junction and ALL, whose vehicles are those that came to the signal. episodes: the
    records of one controller on one scenario."""
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in episodes:
        for approach in record.get("approaches") or ():
            for edge in (approach["edge"], ALL):
                parts.setdefault((approach["junction"], edge), []).append(approach)
    return {place: _mean(each, len(episodes), of_one=place[1] != ALL) for place, each in parts.items()}


def _mean(parts: Sequence[Mapping[str, Any]], num_episodes: int, *, of_one: bool) -> Approach:
    def total(key: str) -> float:
        return sum(float(part[key]) for part in parts)

    # of all approaches, a vehicle that came over two edges counts once
    vehicles = sum(float(part["vehicles"]) for part in parts if of_one or part["at_signal"])
    return Approach(
        vehicles=vehicles / num_episodes,
        delay_s=total("time_loss_s") / vehicles if vehicles else None,
        mean_queue_veh=total("mean_queue_veh") / num_episodes,
        p95_queue_veh=total("p95_queue_veh") / num_episodes if of_one else None,
    )
