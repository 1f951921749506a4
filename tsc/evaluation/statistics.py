"""From episodes to a table: means over seeds with 95 % intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

METRICS = {
    "mean_queue_veh": "mean queue [veh]",
    "waiting_time_s": "waiting time [s]",
    "trip_duration_s": "trip duration [s]",
    "invalid_answers": "invalid answers",
}


def interval95(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of the mean's 95 % interval by Student's t; low = mean = high for a single value."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, mean - half, mean + half


def result_rows(episodes: Sequence[dict[str, Any]], scenario: str) -> list[dict[str, Any]]:
    """Rows of scenario, controller, metric, mean, ci95_low, ci95_high, seeds, in the order of the episodes."""
    ours = [episode for episode in episodes if episode["scenario"] == scenario]
    rows = []
    for controller in dict.fromkeys(episode["controller"] for episode in ours):
        of_controller = sorted((e for e in ours if e["controller"] == controller), key=lambda e: int(e["seed"]))
        for metric in METRICS:
            mean, low, high = interval95([episode[metric] for episode in of_controller])
            rows.append(
                {
                    "scenario": scenario,
                    "controller": controller,
                    "metric": metric,
                    "mean": mean,
                    "ci95_low": low,
                    "ci95_high": high,
                    "seeds": [episode["seed"] for episode in of_controller],
                }
            )
    return rows


def paired_difference(
    episodes: Sequence[dict[str, Any]], scenario: str, metric: str, first: str, second: str
) -> tuple[float, float, float]:
    """(mean, low, high) of `first` minus `second` over the seeds that both have run, 95 % interval by Student's t."""

    def by_seed(controller: str) -> dict[int, float]:
        return {e["seed"]: e[metric] for e in episodes if e["scenario"] == scenario and e["controller"] == controller}

    one, other = by_seed(first), by_seed(second)
    return interval95([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a controller, one column a metric: mean ± half the width of its 95 % interval."""
    controllers = list(dict.fromkeys(row["controller"] for row in rows))
    cells = {
        (row["controller"], row["metric"]): f"{row['mean']:.2f} ± {(row['ci95_high'] - row['ci95_low']) / 2:.2f}"
        for row in rows
    }
    table = [["controller", *METRICS.values()]]
    table += [[controller, *(cells[controller, metric] for metric in METRICS)] for controller in controllers]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in table
    ]
    rule = (
        "|"
        + "|".join("-" * (width + 2 - (column > 0)) + (":" if column else "") for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])
