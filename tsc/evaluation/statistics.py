"""From episodes to numbers: means over seeds, paired differences to a reference, and the share of the gap closed.

The interval of every number is a bootstrap over seeds. With few seeds, the plain percentile and BCa bootstraps are too
narrow: for five normal values, their 95 % intervals contain the true mean in about 84 % of the cases. The percentile
interval is therefore expanded as Hesterberg advises (What Teachers Should Know About the Bootstrap, 2015): its level is
raised until it is as wide as Student's t for normal values. That gives about 93 %
(tests/tsc/evaluation/test_statistics.py counts both). With two or three seeds, no bootstrap gives an honest interval,
so nothing is claimed from fewer than MIN_SEEDS_TO_CLAIM. The random numbers are fixed: the same episodes give the same
intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tsc.controllers.registry import CLASSICAL
from tsc.evaluation.metrics import METRICS, list_item
from tsc.files import write_atomically

MIN_SEEDS_TO_CLAIM = 5

# the end of the scale of `gap_closed`, which begins at the reference
GAP_TO = "lookahead"

# the value of the column `scenario` in rows that take all scenarios together
ALL_SCENARIOS = "all scenarios"
QUEUE = "mean_queue_veh"
QUEUE_RATIO = "mean_queue_ratio"

SUMMARY_COLUMNS = (
    "scenario",
    "controller",
    "metric",
    "unit",
    "mean",
    "ci95_low",
    "ci95_high",
    "sd",
    "num_seeds",
    "reference",
    "difference",
    "difference_ci95_low",
    "difference_ci95_high",
    "difference_percent",
    "wilcoxon_p",
    "gap_closed",
    "gap_closed_ci95_low",
    "gap_closed_ci95_high",
)

DEFINITIONS = {
    "reference": "The controller that the others are compared with. best_classical is the best classical controller of "
    "each scenario: of those that a city could run (" + ", ".join(CLASSICAL) + "), and that take part, the one with "
    "the smallest mean delay on some validation seeds. The delay counts unfinished trips and vehicles that wait to "
    "enter. The seeds of the results are not used for this choice, because the best of several means is partly luck: "
    "on the same seeds, the reference would look better than it is. Another classical controller may have a shorter "
    "mean queue, which leaves out the vehicles that wait to enter.",
    "mean and interval": "The mean over the seeds. Each seed is one episode with its own random demand. The 95 % "
    "interval is a bootstrap over the seeds: 9,999 times, as many seeds as were run are drawn from them with "
    "replacement, and the interval covers the middle of the resulting means (the percentile interval, expanded for few "
    "seeds after Hesterberg 2015). It says how much the mean may change with other hours of the same demand. It says "
    "nothing about other junctions. One seed has no interval; with two or three seeds it is too narrow. sd: standard "
    "deviation.",
    "difference": "Controller minus reference on the same seed (the same vehicles), mean over the seeds that both ran, "
    "with the same kind of interval. In %, it is this mean divided by the reference's mean on these seeds. If the "
    "interval contains 0, no difference is shown. Each interval is for one comparison: among many comparisons without "
    "a true difference, one in twenty would exclude 0 by chance.",
    "p": "The p-value of Wilcoxon's signed-rank test on these differences, two-sided, exact for few seeds. Pairs "
    "without a difference are left out. A single pair has no p. With 5 seeds, p cannot fall below 0.0625; with 6, not "
    "below 0.031; with 10, not below 0.002.",
    "gap closed": "(mean queue under the reference − mean queue under the controller) / (mean queue under the "
    "reference − mean queue under lookahead), over the seeds that all three ran. 0 % is as good as the reference, "
    "100 % is as good as lookahead. The interval is a bootstrap of the three together. The share is not given if the "
    "reference or lookahead is missing, or if the interval of the reference minus lookahead reaches 0: then no gap is "
    "left to close.",
    "all scenarios": "Mean queue: the mean over the scenarios of each scenario's mean queue, so large nets weigh most. "
    "Queue ratio: the geometric mean over the scenarios of (mean queue under the controller / mean queue under the "
    "reference), so every scenario weighs the same; below 1 is a shorter queue. A controller is listed only if it ran "
    "in all scenarios; best_classical has the episodes of each scenario's reference. The first seeds of all scenarios "
    "are combined, then the second seeds, and so on. The interval is over these combined seeds, with the scenarios "
    "held fixed.",
}

_NUM_RESAMPLES = 9999


def bootstrap_interval95(
    samples: Sequence[np.ndarray], statistic: Callable[..., Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(low, high) of a statistic of samples that are paired along their last axis, the seeds.

    `statistic(*samples, axis)` reduces that axis; other axes are kept. Returns None for fewer than two seeds.
    """
    num_seeds = samples[0].shape[-1]
    if num_seeds < 2:
        return None
    width = math.sqrt(num_seeds / (num_seeds - 1)) * stats.t.ppf(0.975, num_seeds - 1)
    interval = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=_NUM_RESAMPLES,
        batch=1000,
        vectorized=True,
        paired=True,
        axis=-1,
        confidence_level=min(2 * stats.norm.cdf(width) - 1, 1 - 1e-9),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the signed-rank test. None for fewer than two pairs, or if all differences are zero."""
    changed = np.asarray([difference for difference in differences if difference != 0], dtype=float)
    if len(differences) < 2 or not len(changed):
        return None
    return float(stats.wilcoxon(changed).pvalue)  # exact for up to 50 pairs; for up to 13 if some are equal


def summarise(episodes: pd.DataFrame, references: Mapping[str, str]) -> pd.DataFrame:
    """A table with SUMMARY_COLUMNS and `seeds` (a tuple): one row per scenario, controller and metric, in the order of
    the episodes. If there are several scenarios, rows of ALL_SCENARIOS follow.

    episodes: one row each, with scenario, controller, seed and the metrics of tsc.evaluation.metrics. None and NaN are
    left out.
    references: the controller that the others are compared with, by scenario, and for ALL_SCENARIOS. There, a name that
    no controller has stands for each scenario's own reference.
    """
    rows: list[dict[str, Any]] = []
    for scenario in dict.fromkeys(episodes["scenario"]):
        rows += _scenario_rows(episodes[episodes["scenario"] == scenario], str(scenario), references[scenario])
    if episodes["scenario"].nunique() > 1:
        reference = references[ALL_SCENARIOS]
        if reference not in set(episodes["controller"]):
            own = episodes[episodes["controller"] == episodes["scenario"].map(references)]
            episodes = pd.concat([own.assign(controller=reference), episodes])
        queues = _queues_by_scenario(episodes)
        taken_together = queues.index.to_frame(index=False)
        taken_together[QUEUE] = [float(np.mean(of_scenarios)) for of_scenarios in queues.to_numpy(dtype=float)]
        rows += _scenario_rows(taken_together, ALL_SCENARIOS, reference)
        rows += _ratio_rows(queues, reference)
    return pd.DataFrame(rows, columns=[*SUMMARY_COLUMNS, "seeds"])


def _row(scenario: str, controller: str, metric: str, unit: str, reference: str) -> dict[str, Any]:
    return dict.fromkeys(SUMMARY_COLUMNS) | {
        "scenario": scenario,
        "controller": controller,
        "metric": metric,
        "unit": unit,
        "reference": reference,
    }


def _scenario_rows(episodes: pd.DataFrame, scenario: str, reference: str) -> list[dict[str, Any]]:
    # one frame per metric: seeds by controllers
    keys = [key for key in METRICS if key in episodes]
    controllers = list(dict.fromkeys(episodes["controller"]))
    wide = {
        key: episodes.assign(value=pd.to_numeric(episodes[key]))
        .pivot(index="seed", columns="controller", values="value")
        .sort_index()
        for key in keys
    }
    rows = []
    for controller in controllers:
        of_controller = pd.DataFrame({key: wide[key][controller] for key in keys})
        means = _means(of_controller)
        differences = {}
        if reference in controllers and controller != reference:
            differences = _means(pd.DataFrame({key: wide[key][controller] - wide[key][reference] for key in keys}))
        for key in keys:
            if key not in means:
                continue
            row = _row(scenario, controller, key, METRICS[key].unit, reference) | means[key]
            if key in differences:
                row |= _difference(differences[key], wide[key][reference])
            if key == QUEUE and len({reference, GAP_TO} & set(controllers)) == 2:
                row |= _gap_closed(wide[key], controller, reference)
            rows.append(row)
    return rows


def _means(values: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each column: mean, ci95_low, ci95_high, sd, num_seeds and seeds, over the seeds that have a value.

    Columns without any value are left out. Columns with the same seeds are resampled together, for speed.
    """
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for key in values:
        by_seeds.setdefault(tuple(values.index[values[key].notna()]), []).append(str(key))
    found: dict[str, dict[str, Any]] = {}
    for seeds, keys in by_seeds.items():
        if not seeds:
            continue
        matrix = values.loc[list(seeds), keys].to_numpy(dtype=float).T
        interval = bootstrap_interval95([matrix], np.mean)
        for number, key in enumerate(keys):
            found[key] = {
                "mean": float(matrix[number].mean()),
                "ci95_low": float(interval[0][number]) if interval else None,
                "ci95_high": float(interval[1][number]) if interval else None,
                "sd": float(matrix[number].std(ddof=1)) if len(seeds) > 1 else None,
                "num_seeds": len(seeds),
                "seeds": tuple(int(seed) for seed in seeds),
                "values": matrix[number],
            }
    return found


def _difference(difference: dict[str, Any], reference: pd.Series[float]) -> dict[str, Any]:
    mean_of_reference = float(reference.loc[list(difference["seeds"])].mean())
    return {
        "difference": difference["mean"],
        "difference_ci95_low": difference["ci95_low"],
        "difference_ci95_high": difference["ci95_high"],
        "difference_percent": 100 * difference["mean"] / mean_of_reference if mean_of_reference else None,
        "wilcoxon_p": wilcoxon_p(difference["values"]),
    }


def _gap_closed(queues: pd.DataFrame, controller: str, reference: str) -> dict[str, Any]:
    """queues: mean queue, seeds by controllers."""
    common = queues[[reference, GAP_TO]].assign(controller=queues[controller]).dropna()
    worst, best, ours = (common[name].to_numpy(dtype=float) for name in (reference, GAP_TO, "controller"))
    gap = bootstrap_interval95([worst - best], np.mean)
    if gap is None or gap[0] <= 0:
        return {}

    def share(worst: np.ndarray, ours: np.ndarray, best: np.ndarray, axis: int) -> np.ndarray:
        gap = np.asarray(worst.mean(axis) - best.mean(axis))
        return np.asarray((worst.mean(axis) - ours.mean(axis)) / gap)

    interval = bootstrap_interval95([worst, ours, best], share)
    assert interval is not None
    return {
        "gap_closed": float(share(worst, ours, best, -1)),
        "gap_closed_ci95_low": float(interval[0]),
        "gap_closed_ci95_high": float(interval[1]),
    }


def _queues_by_scenario(episodes: pd.DataFrame) -> pd.DataFrame:
    """The mean queue of each scenario (columns), for the controllers and seeds that all scenarios have.

    Rows: controller, then seed (1 for the first seed of every scenario, and so on).
    """
    names = list(dict.fromkeys(episodes["controller"]))
    numbered = episodes.assign(seed=episodes.groupby("scenario")["seed"].rank(method="dense").astype(int))
    queues = numbered.pivot(index=["controller", "seed"], columns="scenario", values=QUEUE)
    queues = queues[list(dict.fromkeys(episodes["scenario"]))].dropna()
    return queues.sort_index(key=lambda level: level.map(names.index) if level.name == "controller" else level)


def _ratio_rows(queues: pd.DataFrame, reference: str) -> list[dict[str, Any]]:
    """queues: as _queues_by_scenario returns them."""
    rows = []
    controllers = list(dict.fromkeys(queues.index.get_level_values("controller")))
    for controller in controllers if reference in controllers else []:
        seeds = [int(seed) for seed in queues.loc[controller].index.intersection(queues.loc[reference].index)]
        if controller == reference or not seeds:
            continue
        ours, theirs = (queues.loc[name].loc[seeds].to_numpy(dtype=float).T for name in (controller, reference))
        if not theirs.all():  # a scenario without any queue does not have a ratio
            continue
        num_scenarios = len(ours)

        def ratio(*samples: np.ndarray, axis: int, num_scenarios: int = num_scenarios) -> np.ndarray:
            means = np.array([sample.mean(axis) for sample in samples])
            return np.asarray(np.prod(means[:num_scenarios] / means[num_scenarios:], axis=0) ** (1 / num_scenarios))

        samples = [*ours, *theirs]
        interval = bootstrap_interval95(samples, ratio)
        row = _row(ALL_SCENARIOS, str(controller), QUEUE_RATIO, "", reference)
        row |= {"mean": float(ratio(*samples, axis=-1)), "num_seeds": len(seeds), "seeds": tuple(seeds)}
        if interval:
            row |= {"ci95_low": float(interval[0]), "ci95_high": float(interval[1])}
        rows.append(row)
    return rows


def definitions_markdown() -> str:
    """The text for docs/evaluation.md."""
    return "\n".join(list_item(f"**{name}**: {definition}") for name, definition in DEFINITIONS.items())


def write_summary(summary: pd.DataFrame, out: Path) -> None:
    """Write OUT/summary.csv and OUT/results.json (mean, interval, seeds and reference, without ALL_SCENARIOS)."""
    text = summary[list(SUMMARY_COLUMNS)].to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(out / "summary.csv", text.encode())
    keys = ("scenario", "controller", "metric", "mean", "ci95_low", "ci95_high", "seeds", "reference")
    results = [{key: row[key] for key in keys} for row in records(summary) if row["scenario"] != ALL_SCENARIOS]
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())


def records(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the table, with None instead of NaN."""
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def interval95(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its 95 % interval by Student's t. For a single value, low = mean = high.

    The published tables of the horizon and shaping studies use this interval.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, mean - half, mean + half


def paired_difference(
    episodes: Sequence[dict[str, Any]], scenario: str, metric: str, first: str, second: str
) -> tuple[float, float, float]:
    """(mean, low, high) of `first` minus `second` over the seeds that both ran; 95 % interval by Student's t."""

    def by_seed(controller: str) -> dict[int, float]:
        return {e["seed"]: e[metric] for e in episodes if e["scenario"] == scenario and e["controller"] == controller}

    one, other = by_seed(first), by_seed(second)
    return interval95([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
