from typing import Any

import pytest

from tsc.evaluation.disagreements import compare_with_lookahead


def decided(decision: str, yes: float, no: float, elapsed_green_s: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "time_s": 100.0,
        "junction_id": "A0",
        "seed": 1,
        "decision": decision,
        "outcomes": {"yes": yes, "no": no},
        "elapsed_green_s": elapsed_green_s,
        "fallback": None,
        **more,
    }


def test_a_disagreement_costs_what_the_other_answer_would_have_saved() -> None:
    found = compare_with_lookahead(
        [
            decided("yes", yes=30, no=50),  # right
            decided("yes", yes=40, no=40),  # a tie, which cannot be wrong
            decided("no", yes=30, no=50, elapsed_green_s=15),
            decided("yes", yes=90, no=20, elapsed_green_s=30, fallback="late"),
        ]
    )
    assert found is not None
    total = found.total
    assert (total.decisions, total.ties, total.disagreed) == (4, 1, 2)
    assert (total.ended_too_early, total.held_too_long, total.cost, total.mean_cost) == (1, 1, 90, 45)
    assert total.share_percent == 50
    assert found.by_fallback == 1
    assert [(count.label, count.decisions, count.cost) for count in found.by_elapsed_green] == [
        ("10–19 s", 3, 20),
        ("30–39 s", 1, 70),
    ]
    assert [record["cost"] for record in found.costliest] == [70, 20]


def test_ten_of_the_costliest_are_kept_in_an_order_that_does_not_depend_on_the_file() -> None:
    decisions = [decided("no", yes=0, no=cost % 7 + 1, time_s=float(cost)) for cost in range(30)]
    found, turned = compare_with_lookahead(decisions), compare_with_lookahead(decisions[::-1])
    assert found is not None and turned is not None
    assert found.costliest == turned.costliest
    assert [record["cost"] for record in found.costliest] == [7, 7, 7, 7, 6, 6, 6, 6, 5, 5]


def test_without_decisions_there_is_nothing_to_compare() -> None:
    assert compare_with_lookahead([]) is None
    agreed = compare_with_lookahead([decided("yes", yes=1, no=2)])
    assert agreed is not None
    assert agreed.total.mean_cost is None
    assert agreed.costliest == []


def test_costs_of_any_measure_are_taken_as_they_are() -> None:
    found = compare_with_lookahead([decided("no", yes=-1.5, no=2.25)])
    assert found is not None
    assert found.total.cost == pytest.approx(3.75)
