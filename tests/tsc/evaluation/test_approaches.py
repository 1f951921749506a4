"""Delay and level of service of approaches, from hand-worked records."""

from __future__ import annotations

from typing import Any

import pytest

from tsc.evaluation.approaches import ALL, Approach, by_approach


def record(*approaches: tuple[str, str, int, float, float, float], upstream: str = "") -> dict[str, Any]:
    """junction, edge, vehicles, time lost (s), mean queue and its 95th percentile. upstream: an edge that leads onto
    another of them."""
    keys = ("junction", "edge", "vehicles", "time_loss_s", "mean_queue_veh", "p95_queue_veh")
    found = [dict(zip(keys, values, strict=True)) for values in approaches]
    return {"approaches": [each | {"at_signal": each["edge"] != upstream} for each in found]}


def test_delay_is_that_of_a_vehicle_over_all_episodes() -> None:
    found = by_approach(
        [
            record(("J", "north", 10, 100.0, 1.0, 2.0), ("J", "south", 90, 4500.0, 5.0, 8.0)),
            record(("J", "north", 30, 1100.0, 3.0, 6.0), ("J", "south", 110, 5500.0, 7.0, 10.0)),
        ]
    )
    assert found["J", "north"] == Approach(vehicles=20.0, delay_s=30.0, mean_queue_veh=2.0, p95_queue_veh=4.0)
    assert found["J", "south"] == Approach(vehicles=100.0, delay_s=50.0, mean_queue_veh=6.0, p95_queue_veh=9.0)
    # a vehicle of either, not a mean of the two approaches
    assert found["J", ALL].delay_s == pytest.approx(11_200 / 240)
    assert (found["J", ALL].mean_queue_veh, found["J", ALL].p95_queue_veh) == (8.0, None)
    assert [found["J", edge].level for edge in ("north", "south", ALL)] == ["C", "D", "D"]


@pytest.mark.parametrize(
    ("delay_s", "level"),
    [(0.0, "A"), (10.0, "A"), (10.1, "B"), (20.1, "C"), (35.1, "D"), (55.1, "E"), (80.0, "E"), (80.1, "F")],
)
def test_levels_are_those_of_the_highway_capacity_manual(delay_s: float, level: str) -> None:
    assert Approach(vehicles=1, delay_s=delay_s, mean_queue_veh=0, p95_queue_veh=0).level == level


def test_a_vehicle_that_came_over_two_edges_counts_once_in_the_whole() -> None:
    parts = (("J", "north", 10, 100.0, 1.0, 2.0), ("J", "farther_north", 10, 50.0, 0.5, 1.0))
    assert by_approach([record(*parts, upstream="farther_north")])["J", ALL].delay_s == 15.0


def test_an_approach_without_a_vehicle_has_no_level() -> None:
    (approach, _) = by_approach([record(("J", "north", 0, 0.0, 0.0, 0.0))]).values()
    assert approach.delay_s is None and approach.level is None


def test_episodes_of_an_earlier_version_have_no_approaches() -> None:
    assert by_approach([{"mean_queue_veh": 1.0}]) == {}
