import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tsc.evaluation.statistics import (
    ALL_SCENARIOS,
    QUEUE,
    QUEUE_RATIO,
    SUMMARY_COLUMNS,
    bootstrap_interval95,
    interval95,
    paired_difference,
    records,
    summarise,
    wilcoxon_p,
    write_summary,
)

REFERENCES = dict.fromkeys(("four_way", "small", "large", ALL_SCENARIOS), "max_pressure")


def episodes(queues: dict[str, Sequence[float]], scenario: str = "four_way", first_seed: int = 1001) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"scenario": scenario, "controller": controller, "seed": first_seed + number, QUEUE: queue}
            for controller, values in queues.items()
            for number, queue in enumerate(values)
        ]
    )


def row_of(summary: pd.DataFrame, controller: str, scenario: str = "four_way", metric: str = QUEUE) -> dict[str, Any]:
    found = [
        row
        for row in records(summary)
        if (row["scenario"], row["controller"], row["metric"]) == (scenario, controller, metric)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # all five of one sign: 2 of the 32 patterns of signs are that extreme
        ([-1, -2, -3, -4, -5], 2 / 32),
        # ranks against the majority add up to 2: {}, {1} and {2} are that small, on either side
        ([1, -2, 3, 4, 5], 6 / 32),
        # a zero is no pair, so four are left
        ([0, -1, -2, -3, -4], 2 / 16),
        ([0.0, 0.0, 0.0], None),
        ([-1.0], None),
    ],
)
def test_wilcoxons_p_is_that_worked_by_hand(differences: list[float], p: float | None) -> None:
    assert wilcoxon_p(differences) == (p if p is None else pytest.approx(p))


def test_wilcoxons_p_is_exact_with_equal_differences() -> None:
    differences = [1.0, 1.0, -1.0, 2.0, 3.0, 3.0, -2.0]
    ranks = stats.rankdata(np.abs(differences))
    centre = ranks.sum() / 2
    observed = abs(sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0) - centre)
    patterns = itertools.product((0, 1), repeat=len(differences))
    extreme = [abs(np.dot(pattern, ranks) - centre) >= observed - 1e-9 for pattern in patterns]
    assert wilcoxon_p(differences) == pytest.approx(np.mean(extreme))


def test_the_interval_is_that_of_resampled_means_at_the_level_expanded_for_few_seeds() -> None:
    values = np.array([1.2, 2.5, 2.1, 3.3, 1.9, 2.8])
    # Hesterberg's level: as wide as Student's t for normal values
    level = stats.norm.cdf(math.sqrt(6 / 5) * stats.t.ppf(0.025, 5))
    random = np.random.default_rng(12)
    means = [random.choice(values, 6).mean() for _ in range(30_000)]
    found = bootstrap_interval95([values], np.mean)
    assert found is not None
    assert found == pytest.approx(np.quantile(means, [level, 1 - level]), abs=0.03)
    assert values.min() <= found[0] < values.mean() < found[1] <= values.max()


@pytest.mark.parametrize(("num_seeds", "at_least"), [(5, 0.90), (10, 0.92)])
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(num_seeds: int, at_least: float) -> None:
    samples = np.random.default_rng(3).normal(7, 2, size=(500, num_seeds))
    found = bootstrap_interval95([samples], np.mean)
    assert found is not None
    held = float(np.mean((found[0] <= 7) & (found[1] >= 7)))
    assert at_least <= held <= 0.97


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_plain_bootstrap_of_five_seeds_is_too_narrow(method: str) -> None:
    samples = np.random.default_rng(3).normal(7, 2, size=(500, 5))
    found = stats.bootstrap(
        (samples,), np.mean, axis=-1, n_resamples=999, batch=100, method=method, rng=np.random.default_rng(0)
    ).confidence_interval
    assert 0.80 <= np.mean((found.low <= 7) & (found.high >= 7)) <= 0.88


def test_one_seed_has_a_mean_and_no_interval() -> None:
    row = row_of(summarise(episodes({"static": [6.0], "max_pressure": [2.0]}), REFERENCES), "static")
    assert (row["mean"], row["num_seeds"], row["difference"]) == (6, 1, 4)
    for key in ("ci95_low", "ci95_high", "sd", "difference_ci95_low", "difference_ci95_high", "wilcoxon_p"):
        assert row[key] is None, key


def test_a_controller_equal_to_the_reference_differs_by_nothing_and_has_no_p() -> None:
    queues = [2.0, 3.0, 2.5, 4.0]
    row = row_of(summarise(episodes({"twin": queues, "max_pressure": queues}), REFERENCES), "twin")
    assert (row["difference"], row["difference_ci95_low"], row["difference_ci95_high"]) == (0, 0, 0)
    assert row["difference_percent"] == 0
    assert row["wilcoxon_p"] is None


def test_differences_are_paired_by_seed() -> None:
    # seeds differ much more than controllers: unpaired, nothing could be seen
    reference = [1.0, 5.0, 9.0, 13.0, 17.0]
    frame = episodes({"max_pressure": reference, "mine": [queue - 0.5 for queue in reference]})
    row = row_of(summarise(frame, REFERENCES), "mine")
    assert (row["difference"], row["difference_ci95_low"], row["difference_ci95_high"]) == (-0.5, -0.5, -0.5)
    assert row["difference_percent"] == pytest.approx(-100 * 0.5 / 9)
    assert row["wilcoxon_p"] == pytest.approx(0.0625)
    assert row["ci95_low"] < 3 < row["ci95_high"]


def test_seeds_without_a_partner_count_in_the_mean_and_not_in_the_difference() -> None:
    frame = pd.concat([episodes({"max_pressure": [2.0, 3.0]}), episodes({"mine": [1.0, 2.0, 9.0]})])
    row = row_of(summarise(frame, REFERENCES), "mine")
    assert (row["mean"], row["num_seeds"], row["difference"]) == (4, 3, -1)


def test_the_order_of_the_episodes_does_not_matter() -> None:
    frame = episodes({"max_pressure": [2.0, 3.0, 2.4], "lookahead": [1.0, 2.2, 1.4], "mine": [1.5, 2.5, 2.0]})
    shuffled = frame.sample(frac=1, random_state=5)
    expected = {row["controller"]: row for row in records(summarise(frame, REFERENCES))}
    assert {row["controller"]: row for row in records(summarise(shuffled, REFERENCES))} == expected


def test_a_metric_without_a_value_has_no_row() -> None:
    frame = episodes({"static": [6.0, 7.0]}).assign(latency_p50_s=[None, None], stops=[None, 2.0])
    summary = summarise(frame, REFERENCES)
    assert set(summary["metric"]) == {QUEUE, "stops"}
    assert row_of(summary, "static", metric="stops")["num_seeds"] == 1


def test_the_share_of_the_gap_is_that_worked_by_hand() -> None:
    frame = episodes(
        {
            "max_pressure": [2.0, 3.0, 4.0],
            "lookahead": [1.0, 2.0, 3.0],
            "mine": [1.25, 2.25, 3.25],
            "static": [4.0, 5.0, 6.0],
        }
    )
    summary = summarise(frame, REFERENCES)
    shares = {
        name: [row_of(summary, name)[f"gap_closed{part}"] for part in ("", "_ci95_low", "_ci95_high")]
        for name in ("mine", "static", "max_pressure", "lookahead")
    }
    assert shares == {
        "mine": pytest.approx([0.75] * 3),
        "static": pytest.approx([-2.0] * 3),
        "max_pressure": pytest.approx([0.0] * 3),
        "lookahead": pytest.approx([1.0] * 3),
    }


def test_the_gap_begins_at_the_reference_of_the_scenario() -> None:
    frame = episodes({"actuated": [2.0, 3.0, 4.0], "lookahead": [1.0, 2.0, 3.0], "mine": [1.25, 2.25, 3.25]})
    summary = summarise(frame, {"four_way": "actuated"})
    assert [row_of(summary, name)["gap_closed"] for name in ("actuated", "mine", "lookahead")] == [0, 0.75, 1]
    # no gap lies between lookahead and itself
    assert row_of(summarise(frame, {"four_way": "lookahead"}), "mine")["gap_closed"] is None


@pytest.mark.parametrize(
    "queues",
    [
        {"max_pressure": [2.0, 3.0, 4.0], "mine": [1.0, 2.0, 3.0]},
        {"max_pressure": [2.0], "lookahead": [1.0], "mine": [1.5]},
        # now better, now worse than lookahead
        {"max_pressure": [2.0, 3.0, 4.0], "lookahead": [2.5, 2.5, 3.5], "mine": [1.0, 2.0, 3.0]},
    ],
    ids=["no lookahead", "one seed", "no gap beyond the spread"],
)
def test_without_a_gap_none_of_it_is_closed(queues: dict[str, list[float]]) -> None:
    assert row_of(summarise(episodes(queues), REFERENCES), "mine")["gap_closed"] is None


def two_scenarios(**more: Sequence[float]) -> pd.DataFrame:
    return pd.concat(
        [
            episodes({"max_pressure": [2.0, 4.0], "mine": [1.0, 2.0], **more}, "small", first_seed=1),
            episodes({"max_pressure": [30.0, 50.0], "mine": [60.0, 100.0]}, "large", first_seed=501),
        ]
    )


def test_all_scenarios_together_have_the_mean_of_means_and_the_geometric_mean_of_ratios() -> None:
    summary = summarise(two_scenarios(), REFERENCES)
    row = row_of(summary, "mine", ALL_SCENARIOS)
    assert row["mean"] == (1.5 + 80) / 2
    assert row["difference"] == pytest.approx((1.5 + 80) / 2 - (3 + 40) / 2)
    # half of the queue here, twice of it there
    ratio = row_of(summary, "mine", ALL_SCENARIOS, QUEUE_RATIO)
    assert (ratio["mean"], ratio["ci95_low"], ratio["ci95_high"]) == pytest.approx((1, 1, 1))


def test_each_scenario_and_all_together_are_compared_with_the_best_classical_controller() -> None:
    frame = pd.concat(
        [
            episodes({"static": [4.0, 6.0], "actuated": [2.0, 3.0], "mine": [1.0, 1.0]}, "small", first_seed=1),
            episodes({"static": [20.0, 10.0], "actuated": [30.0, 40.0], "mine": [10.0, 20.0]}, "large", 501),
        ]
    )
    references = {"small": "actuated", "large": "static", ALL_SCENARIOS: "best_classical"}
    summary = summarise(frame, references)
    assert {(row["scenario"], row["reference"]) for row in records(summary)} == set(references.items())
    assert row_of(summary, "mine", "small")["difference"] == -1.5
    assert row_of(summary, "mine", "large")["difference"] == 0
    # the first seeds: actuated's 2 and static's 20; the second seeds: 3 and 10
    best = row_of(summary, "best_classical", ALL_SCENARIOS)
    assert (best["mean"], best["difference"]) == ((11 + 6.5) / 2, None)
    # mine on the first seeds: (1 + 10) / 2, on the second: (1 + 20) / 2
    mine = row_of(summary, "mine", ALL_SCENARIOS)
    assert (mine["mean"], mine["difference"]) == ((5.5 + 10.5) / 2, ((5.5 - 11) + (10.5 - 6.5)) / 2)
    ratio = row_of(summary, "mine", ALL_SCENARIOS, QUEUE_RATIO)
    assert ratio["mean"] == pytest.approx(math.sqrt((1 / 2.5) * (15 / 15)))
    assert row_of(summary, "actuated", ALL_SCENARIOS)["difference"] == ((16 - 11) + (21.5 - 6.5)) / 2
    assert "best_classical" not in {row["controller"] for row in records(summary) if row["scenario"] != ALL_SCENARIOS}


def test_a_controller_that_did_not_run_everywhere_is_in_no_mean_over_the_scenarios() -> None:
    summary = summarise(two_scenarios(webster=[0.1, 0.1]), REFERENCES)
    assert set(summary[summary["scenario"] == ALL_SCENARIOS]["controller"]) == {"max_pressure", "mine"}


def test_one_scenario_is_not_taken_together_with_itself() -> None:
    assert ALL_SCENARIOS not in set(summarise(episodes({"static": [6.0, 7.0]}), REFERENCES)["scenario"])


def test_the_files_hold_every_row_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    summary = summarise(two_scenarios(), REFERENCES)
    write_summary(summary, tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("summary.csv", "results.json")]
    write_summary(summarise(two_scenarios(), REFERENCES), tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("summary.csv", "results.json")] == first
    stored = pd.read_csv(tmp_path / "summary.csv")
    assert tuple(stored.columns) == SUMMARY_COLUMNS
    assert len(stored) == len(summary)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[0] == {
        "scenario": "small",
        "controller": "max_pressure",
        "metric": QUEUE,
        "mean": 3.0,
        "ci95_low": 2.0,
        "ci95_high": 4.0,
        "seeds": [1, 2],
        "reference": "max_pressure",
    }
    assert {row["scenario"] for row in results} == {"small", "large"}


def test_the_interval_of_the_studies_is_students() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.303: half width 4.303 / sqrt(3)
    assert interval95([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval95([5]) == (5, 5, 5)


def test_a_constant_shift_has_a_paired_interval_of_no_width() -> None:
    rows = episodes({"static": [6.0, 7.0, 8.0], "grpo": [1.0, 2.0, 3.0]}).to_dict("records")
    assert paired_difference(rows, "four_way", QUEUE, "grpo", "static") == (-5, -5, -5)
