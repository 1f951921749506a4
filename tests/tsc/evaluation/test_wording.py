from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from tsc.evaluation.reference import Reference
from tsc.evaluation.reported import ReportedController, ReportedScenario
from tsc.evaluation.statistics import ALL_SCENARIOS, QUEUE, records, summarise
from tsc.evaluation.wording import Summary, findings, for_a_city, printable, seed_numbers, signed, text_tables
from tsc.junction.timing import Timing

SCENARIO = ReportedScenario(
    name="four_way",
    note="",
    begin_s=0,
    end_s=3600,
    warm_up_s=300,
    timing=Timing(),
    junctions=["A0"],
    reference=Reference(name="max_pressure"),
)
SIX = [2.0, 2.2, 1.8, 2.4, 2.1, 1.9]


def summary_of(queues: dict[str, Sequence[float]]) -> Summary:
    rows = [
        ("four_way", name, 1001 + number, queue, 2 * queue, 3 * queue, 4 * queue)
        for name, values in queues.items()
        for number, queue in enumerate(values)
    ]
    names = ("scenario", "controller", "seed", QUEUE, "waiting_time_s", "trip_duration_s", "delay_s")
    return Summary(records(summarise(pd.DataFrame(rows, columns=names), {"four_way": "max_pressure"})))


def said(queues: dict[str, Sequence[float]], **kinds: str) -> str:
    controllers = [
        ReportedController(name=name, kind=kinds.get(name, name), description="", bounds="") for name in queues
    ]
    return " ".join(findings(summary_of(queues), SCENARIO.name, controllers, "max_pressure"))


def lower(share: float) -> list[float]:
    return [queue * share for queue in SIX]


def test_a_shorter_queue_is_told_with_its_interval_and_the_share_of_the_gap() -> None:
    text = said({"max_pressure": SIX, "lookahead": lower(0.5), "mine": lower(0.75), "static": lower(3)}, mine="llm")
    assert "mine had a mean queue of 1.55 vehicles, 25 % shorter than max_pressure with 2.07" in text
    assert "95 % interval −0.5" in text
    assert "It closes 50 % (95 % interval 50 to 50 %) of the gap between max_pressure and lookahead" in text
    assert "Its delay is 6.2 s per vehicle, shorter than 8.3 s (95 % interval −" in text


def test_a_city_reads_what_it_has_today_and_what_else_changes() -> None:
    values = {
        "static": {QUEUE: 8.0, "delay_s": 31.1, "stops": 0.9, "co2_g_per_km": 400.0, "worst_approach_wait_s": 50.0},
        "actuated": {QUEUE: 5.0, "delay_s": 23.5, "stops": 0.8, "co2_g_per_km": 380.0, "worst_approach_wait_s": 30.0},
        "mine": {
            QUEUE: 3.0, "delay_s": 19.4, "stops": 0.74, "co2_g_per_km": 351.4, "worst_approach_wait_s": 19.4,
            "decisions": 444.0, "invalid_answers": 0.0, "late_answers": 0.5, "latency_p95_s": 0.054,
        },
    }  # fmt: skip
    rows = [{"scenario": "four_way", "controller": name, "seed": 1, **metrics} for name, metrics in values.items()]
    summary = Summary(records(summarise(pd.DataFrame(rows), {"four_way": "actuated"})))
    kinds = {"mine": "llm"}
    controllers = [
        ReportedController(name=name, kind=kinds.get(name, name), description="", bounds="") for name in values
    ]
    assert for_a_city(summary, "four_way", controllers, "actuated") == [
        "Delay under mine: 19.4 s; under the net's own plan 31.1 s.",
        "Under mine, a vehicle stops 0.74 times (actuated: 0.80); it emits 351 g of CO2 a km (actuated: 380); on the "
        "worst approach it stands for 19.4 s (actuated: 30.0).",
        "mine answers 95 % of its questions within 0.05 s. Of 444 answers an episode, 0.0 could not be read and 0.5 "
        "came too late.",
    ]
    assert for_a_city(summary, "elsewhere", controllers, "actuated") == []


def test_no_difference_is_claimed_where_the_interval_holds_0() -> None:
    text = said({"max_pressure": SIX, "mine": [2.3, 1.8, 2.0, 2.3, 2.0, 2.2]}, mine="llm")
    assert text.startswith("No difference is shown between mine and max_pressure")
    assert "Its delay is 8.4 s per vehicle, with no difference shown to 8.3 s (95 % interval −" in text
    assert "shorter than" not in text and "longer than" not in text


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (lower(1.5), "It closes none of the gap"),
        ([2.3, 1.7, 2.0, 2.3, 2.0, 2.0], "It is not shown to close any of the gap"),
    ],
)
def test_a_share_of_the_gap_that_may_be_0_is_not_claimed(ours: list[float], words: str) -> None:
    assert words in said({"max_pressure": SIX, "lookahead": lower(0.5), "mine": ours}, mine="llm")


@pytest.mark.parametrize("num_seeds", [1, 2, 4])
def test_no_difference_is_claimed_from_few_seeds(num_seeds: int) -> None:
    queues = {"max_pressure": SIX, "lookahead": lower(0.1), "mine": lower(0.2)}
    text = said({name: values[:num_seeds] for name, values in queues.items()}, mine="llm")
    assert "no difference can be claimed" in text
    assert "shorter than" not in text and "gap" not in text


def test_a_controller_alone_is_compared_with_nothing() -> None:
    assert said({"static": SIX}).startswith("static had a mean queue of 2.07 vehicles (95 % interval 1.8")
    assert "cannot be compared with max_pressure, which did not run" in said({"static": SIX})
    assert said({}) == "No episode was run."


def test_without_a_model_the_best_that_could_be_built_is_told_and_not_lookahead() -> None:
    queues = {"static": lower(3), "gap_out": lower(0.8), "lookahead": lower(0.5), "random": lower(0.7)}
    text = said({"max_pressure": SIX, **queues})
    assert text.startswith("gap_out had a mean queue of 1.65 vehicles, 20 % shorter than max_pressure")


def test_the_console_table_fits_120_columns_and_names_every_controller() -> None:
    queues = {"max_pressure": lower(100), "a_long_name_of_1": lower(123.4), "lookahead": lower(50)}
    text = text_tables(summary_of(queues), [SCENARIO], "max_pressure", {"four_way": range(1001, 1007)})
    lines = text.splitlines()
    assert lines[0] == "four_way: 6 seeds (1001–1006), 3300 s measured after 300 s of warm-up"
    assert max(map(len, lines)) <= 120, text
    assert [line.split()[0] for line in lines[2:5]] == list(queues)
    assert "−50 %" in lines[4] and lines[4].endswith("100 %")
    assert "invalid" not in text


@pytest.mark.parametrize(
    ("delays_s", "line"),
    [
        (
            {"actuated": 10.0, "max_pressure": 12.5, "static": 20.0},
            "reference: actuated, delay 10.0 s on validation seeds 501, 502; second: max_pressure, 12.5 s (+25 %)",
        ),
        ({"actuated": 10.0}, "reference: actuated, delay 10.0 s on validation seeds 501, 502"),
        ({}, None),
    ],
    ids=["several", "only one could run", "not chosen"],
)
def test_the_console_says_which_reference_was_chosen_and_how_far_the_second_was(
    delays_s: dict[str, float], line: str | None
) -> None:
    scenario = replace(SCENARIO, reference=Reference(name="actuated", delays_s=delays_s, seeds=(501, 502)))
    text = text_tables(summary_of({"actuated": SIX}), [scenario], "best_classical", {"four_way": range(1001, 1007)})
    assert [each.strip() for each in text.splitlines() if "  reference: " in each] == ([line] if line else [])


def test_all_scenarios_together_are_told_against_the_best_classical_controller_of_each() -> None:
    rows = [
        {"scenario": scenario, "controller": name, "seed": seed, QUEUE: queue + seed}
        for scenario, name, queue in (("a", "x", 2), ("a", "y", 3), ("a", "mine", 1), ("b", "x", 5), ("b", "y", 4))
        for seed in range(6)
    ]
    rows += [{"scenario": "b", "controller": "mine", "seed": seed, QUEUE: 3 + seed} for seed in range(6)]
    references = {"a": "x", "b": "y", ALL_SCENARIOS: "best_classical"}
    summary = Summary(records(summarise(pd.DataFrame(rows), references)))
    controllers = [ReportedController(name="mine", kind="llm", description="", bounds="")]
    text = " ".join(findings(summary, ALL_SCENARIOS, controllers, "best_classical"))
    best = "the best classical controller of each scenario"
    assert f"mine had a mean queue of 4.50 vehicles, 18 % shorter than {best} with 5.50" in text
    assert f"times that of {best}" in text


def test_the_console_table_tells_of_what_did_not_run() -> None:
    scenario = ReportedScenario(
        name="four_way",
        note="",
        begin_s=0,
        end_s=60,
        warm_up_s=0,
        timing=Timing(),
        junctions=["A0"],
        reference=Reference(name="max_pressure"),
        not_applicable={"webster": "no demand"},
    )
    text = text_tables(Summary([]), [scenario], "max_pressure", {"four_way": []})
    assert "four_way: no episode was run\n  webster cannot run here: no demand" in text


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (0.0, "0.00"), (-0.126, "−0.13"), (1.5, "+1.50"), (None, "–")]
)
def test_a_number_has_a_sign_only_where_it_does_not_round_to_0(value: Any, text: str) -> None:
    assert signed(value, 2) == text


def test_seeds_are_told_shortly_and_holes_are_not_hidden() -> None:
    assert seed_numbers([1003, 1001, 1002]) == "1001–1003"
    assert seed_numbers([1001, 1003, 1004]) == "1001, 1003, 1004"


def test_characters_that_hide_or_turn_text_are_shown_as_codes() -> None:
    assert printable("a\u202eb\x00c\ud800d\ne\tf") == "a\\u202eb\\u0000c\\ud800d\ne\\u0009f"
    assert printable("ümläut → 車") == "ümläut → 車"
