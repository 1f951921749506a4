"""Which controller the others are compared with."""

from typing import Any

import pytest

from tsc.errors import ConfigError
from tsc.evaluation.reference import BEST_CLASSICAL, best_of, reference_candidates


def record(controller: str, seed: int, delay_s: float | None) -> dict[str, Any]:
    return {"controller": controller, "seed": seed, "delay_s": delay_s}


def test_the_smallest_mean_delay_is_the_best_in_any_order_of_the_episodes() -> None:
    # gap_out has the single best seed, actuated the smaller mean
    episodes = [
        *(record("gap_out", 501, 8.0), record("gap_out", 502, 16.0)),
        *(record("actuated", 501, 10.0), record("actuated", 502, 11.0)),
        *(record("static", 501, 30.0), record("static", 502, 20.0)),
    ]
    for order in (episodes, episodes[::-1]):
        reference = best_of(["static", "gap_out", "actuated"], order)
        assert reference.name == "actuated"
        assert list(reference.delays_s.items()) == [("actuated", 10.5), ("gap_out", 12.0), ("static", 25.0)]
        assert reference.seeds == [501, 502]


def test_of_two_that_are_equal_the_first_is_taken() -> None:
    episodes = [record("static", 501, 9.0), record("webster", 501, 9.0)]
    assert best_of(["webster", "static"], episodes).name == "webster"
    assert best_of(["static", "webster"], episodes).name == "static"


def test_a_candidate_that_did_not_run_on_every_seed_is_not_chosen() -> None:
    not_applicable = {"controller": "webster", "seed": 502, "not_applicable": "no flows"}
    episodes = [record("webster", 501, 1.0), not_applicable, record("static", 501, 9.0), record("static", 502, 9.0)]
    assert best_of(["webster", "static"], episodes).delays_s == {"static": 9.0}
    # without a vehicle there is no delay: nothing can be chosen, and no number is made up
    empty = best_of(["webster", "static"], [record("webster", 501, None), record("static", 501, None)])
    assert (empty.name, empty.delays_s, empty.seeds) == ("webster", {}, [])


def test_classical_are_the_controllers_that_a_city_could_run() -> None:
    names = ["lookahead", "static", "random", "actuated", "delay_based", "webster", "gap_out", "max_pressure"]
    assert reference_candidates(BEST_CLASSICAL, [*names, "longest_queue", "grpo"]) == [
        *("static", "actuated", "delay_based", "webster", "gap_out", "max_pressure", "longest_queue")
    ]
    assert reference_candidates("grpo", ["static", "grpo"]) == ["grpo"]


@pytest.mark.parametrize(
    ("asked", "names", "message"),
    [
        (BEST_CLASSICAL, ["lookahead", "grpo"], r"\(lookahead, grpo\), .* as in --reference lookahead"),
        ("actuated", ["static", "grpo"], "'actuated' does not take part: .* best_classical, static, grpo; or add it"),
    ],
)
def test_a_reference_that_does_not_take_part_is_refused(asked: str, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reference_candidates(asked, names)
