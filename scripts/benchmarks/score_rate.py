"""Rows about scores that do not need a replay."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.benchmark_datasets import default_dataset, samples_of, spread
from benchmarks.effort import Effort
from benchmarks.rows import Bound, Row, fastest
from benchmarks.stopwatch import Cost, cost_of, in_turn
from benchmarks.warm_process import warm_processes
from reward.compute_score import close, compute_score
from tsc.junction.decision import Decision
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample

NUM_THREADS = 8
# states that are replayed, and so cached, before the measurement
NUM_CACHED_STATES = 100


def ground_truth(sample: Sample, dataset: Path, *, labelled: bool) -> str:
    """The ground truth as json_to_parquet writes it, with or without the sample's own outcomes."""
    truth: dict[str, object] = {"request": ReplayRequest.from_sample(sample, dataset).to_json()}
    if labelled and sample.outcomes is not None:
        truth["outcomes"] = sample.outcomes.to_json()
    return json.dumps(truth, separators=(",", ":"), ensure_ascii=False)


def keep_cache_in(folder: Path) -> None:
    """Use a cache in `folder`, so that the user's own cache does not change. Call it before the first score."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")


def score_all(truths: Sequence[str], num_scores: int) -> Cost:
    """The cost of compute_score from NUM_THREADS threads, with the default settings: all truths in turn, yes and no."""
    answers = [decision.answer for decision in Decision]

    def score_share(first: int) -> None:
        for number in range(first, num_scores, NUM_THREADS):
            compute_score("tsc", answers[number // len(truths) % 2], truths[number % len(truths)])

    def score_in_threads() -> None:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(score_share, range(NUM_THREADS)))

    return cost_of(score_in_threads, num_scores)


def score_rows(folder: Path, effort: Effort) -> list[Row]:
    """The rows in real time, because the threads share one interpreter, which runs one of them at a time."""
    dataset = default_dataset(folder, effort.episodes)
    samples = [sample for sample in samples_of(dataset) if sample.outcomes is not None]
    labelled = [ground_truth(sample, dataset, labelled=True) for sample in samples]
    cached = [ground_truth(sample, dataset, labelled=False) for sample in spread(samples, NUM_CACHED_STATES)]
    with warm_processes(1) as (scorer,):
        scorer.call(keep_cache_in, folder)
        for truths in (cached, labelled):  # replays the states that are not cached, and the labels that are audited
            scorer.call(score_all, truths, len(truths))
        cached_costs, labelled_costs = in_turn(
            effort.repetitions,
            lambda: scorer.call(score_all, cached, effort.scores),
            lambda: scorer.call(score_all, labelled, effort.scores),
        )
        scorer.call(close)
    return [
        Row(
            name=name,
            what=f"scores of {what}, one process, {NUM_THREADS} threads",
            value=fastest(costs, by_cpu=False),
            unit="1/s",
            must_reach=Bound(at="least", value=20_000),
        )
        for name, what, costs in (
            ("score-cached", "answers to states that were replayed before", cached_costs),
            ("score-labelled", "answers to states labelled in the dataset", labelled_costs),
        )
    ]
