"""Measure this project against the usual alternatives, on this machine. docs/benchmarks.md defines the rows.

Examples:
    python scripts/benchmark.py all --json runs/benchmark/all.json
    python scripts/benchmark.py reward --only replay-bare replay-city --quick

Both sides of a ratio are measured several times in turn, in the same run. The ratio is that of their fastest
repetitions.
The file of --json has the rows measured so far after each of them.
Exit status: 0; 1 if a row misses its bound; 2 if something cannot be measured.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.decision_speed import smollm2_rows, tiny_rows
from benchmarks.effort import FULL, QUICK, Effort
from benchmarks.episode_speed import CONTROLLERS, episode_rows, worker_rows
from benchmarks.grpo_step import speed_rows, step_rows
from benchmarks.label_speed import (
    LABEL_ROWS,
    label_rows,
    label_worker_rows,
    parquet_memory_rows,
    parquet_rows,
    ray_rows,
    size_rows,
)
from benchmarks.replay_speed import bare_rows, city_rows, memory_rows, stretch_rows, traci_rows
from benchmarks.rows import Row, machine_lines, table, write_rows
from benchmarks.score_rate import score_rows
from benchmarks.stopwatch import loop_s
from tsc.errors import ConfigError, did_you_mean, run_main

Measure = Callable[[Path, Effort], list[Row]]

# the functions and the rows that they measure, in the order of the table
REWARD: Mapping[Measure, tuple[str, ...]] = {
    bare_rows: ("replay-bare", "replay-bare-start"),
    traci_rows: ("replay-traci", "replay-traci-cpu"),
    city_rows: ("replay-city", "replay-city-start"),
    score_rows: ("score-cached", "score-labelled"),
    step_rows: ("step-cached", "step-live", "step-live-wait"),
    stretch_rows: ("stretch-4", "stretch-8"),
    memory_rows: ("worker-memory",),
}
STEP: Mapping[Measure, tuple[str, ...]] = {speed_rows: ("step-generate", "step-model", "step-whole")}
DATA: Mapping[Measure, tuple[str, ...]] = {
    **{partial(label_rows, name=name): names for name, names in LABEL_ROWS.items()},
    label_worker_rows: ("label-workers",),
    ray_rows: ("label-ray",),
    size_rows: ("sample-bytes",),
    parquet_rows: ("parquet",),
    parquet_memory_rows: ("parquet-memory",),
}
EVALUATE: Mapping[Measure, tuple[str, ...]] = {
    **{partial(episode_rows, controller=name): (f"episode-{name}",) for name in CONTROLLERS},
    worker_rows: ("workers",),
    smollm2_rows: ("llm-decisions",),
    tiny_rows: ("llm-decisions-tiny",),
}
ALL: Mapping[Measure, tuple[str, ...]] = {**REWARD, **DATA, **STEP, **EVALUATE}


def measure(
    measures: Mapping[Measure, tuple[str, ...]],
    only: Sequence[str],
    folder: Path,
    effort: Effort,
    json_file: Path | None = None,
) -> list[Row]:
    """Measure the rows that `only` names, or all if it is empty, and print the progress. Raises ConfigError.

    json_file: has the rows measured so far, so that a later failure loses none.
    """
    known = [name for names in measures.values() for name in names]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name!r} is unknown: {did_you_mean(name, known)}choose from {', '.join(known)}")
    rows: list[Row] = []
    for function, names in measures.items():
        wanted = [name for name in names if not only or name in only]
        if not wanted:
            continue
        print(f"measuring {', '.join(wanted)} …", end="", flush=True)
        begin = time.monotonic()
        rows += [row for row in function(folder, effort) if row.name in wanted]
        if json_file is not None:
            write_rows(rows, json_file)
        print(f" {time.monotonic() - begin:.0f} s", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, measures, help_text in (
        ("all", ALL, "the rows of all other subjects"),
        ("reward", REWARD, "replays and scores"),
        ("data", DATA, "making a dataset: labels, and their size on disk"),
        ("step", STEP, "a GRPO step beside verl's own engine and agent loops"),
        ("evaluate", EVALUATE, "episodes, workers, and the decisions of a language model"),
    ):
        known = ", ".join(row for rows in measures.values() for row in rows)
        subject = subjects.add_parser(name, help=help_text, description=f"Rows: {known}.")
        subject.set_defaults(measures=measures)
        subject.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, too")
        subject.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure these rows only")
        subject.add_argument("--quick", action="store_true", help="few repetitions, to see that everything runs")
        subject.add_argument(
            "--folder",
            type=Path,
            default=Path("runs/benchmark"),
            help="folder for data, which is kept (default: %(default)s)",
        )
    arguments = parser.parse_args()

    effort = QUICK if arguments.quick else FULL
    print("\n".join(machine_lines(os.getloadavg()[0])))
    loops_s = [loop_s()]
    rows = measure(arguments.measures, arguments.only, arguments.folder.resolve(), effort, arguments.json)
    loops_s.append(loop_s())
    print("a loop of five million additions took {:.2f} s at the start and {:.2f} s at the end\n".format(*loops_s))
    print(table(rows))
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    run_main(main)
