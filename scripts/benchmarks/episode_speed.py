"""Rows about evaluation episodes without a language model: compared with bare libsumo, and in several workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.bare_episode import bare_cost, record_script
from benchmarks.benchmark_datasets import DEFAULT_SCENARIO
from benchmarks.effort import Effort
from benchmarks.rows import Bound, Row
from benchmarks.stopwatch import Cost, cost_of, in_turn
from benchmarks.warm_process import warm_processes
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_job, run_jobs
from tsc.evaluation.plan import Contestant, plan_jobs
from tsc.evaluation.settings import EvaluationSettings
from tsc.scenarios.by_word import traffic_scenarios

CONTROLLERS = ("static", "actuated", "gap_out", "max_pressure", "longest_queue")
# W cores must do at least this share of W times the work of one core; the rest is the start and end of the workers
SHARE_OF_CORES = 0.8


def episode_jobs(folder: Path, contestants: Sequence[Contestant], num_seeds: int, end_s: int) -> list[EpisodeJob]:
    """Episodes of four_way's evaluation seeds, as scripts/evaluate.py plans them under the default settings."""
    settings = EvaluationSettings(end_s=end_s)
    scenarios = traffic_scenarios([str(DEFAULT_SCENARIO)], folder / "scenarios", settings.of_scenarios)
    lookahead = {scenario.name: OutcomeSettings() for scenario in scenarios}
    return plan_jobs(
        scenarios, contestants, num_seeds, out=folder / "evaluation", settings=settings, lookahead=lookahead
    )


def episode_cost(job: EpisodeJob) -> Cost:
    """The cost per simulated second of an episode, as a worker of an evaluation runs it."""
    return cost_of(lambda: run_job(job, None), job.end_s - int(job.files.begin_s))


def episode_rows(folder: Path, effort: Effort, *, controller: str) -> list[Row]:
    """The episode by CPU time, from opening the net to the written trace."""
    (job,) = episode_jobs(folder, [Contestant(name=controller, kind=controller)], 1, effort.episode_s)
    with warm_processes(2) as (ours, bare):
        script = bare.call(record_script, job, folder / "bare" / controller)
        ours.call(episode_cost, job)
        bare.call(bare_cost, script)
        costs = in_turn(
            effort.short_repetitions, partial(ours.call, episode_cost, job), partial(bare.call, bare_cost, script)
        )
    what = f"an evaluation's episode under {controller}; a bare libsumo loop, same signals, reads and outputs"
    bound = Bound(at="least", value=0.8)
    return [Row.of_rates(f"episode-{controller}", what, *costs, by_cpu=True, unit="s/s of CPU", must_reach=bound)]


def jobs_cost(jobs: Sequence[EpisodeJob], workers: int) -> Cost:
    """The cost per episode, with the start and the end of the workers."""
    return cost_of(lambda: list(run_jobs(jobs, workers)), len(jobs))


def worker_rows(folder: Path, effort: Effort) -> list[Row]:
    """All cores at once compared with one worker, in real time."""
    workers = len(os.sched_getaffinity(0))
    contestants = [Contestant(name="max_pressure", kind="max_pressure")]
    jobs = episode_jobs(folder, contestants, effort.worker_episodes, effort.episode_s)
    with warm_processes(1) as (runner,):
        costs = in_turn(
            effort.repetitions, partial(runner.call, jobs_cost, jobs, workers), partial(runner.call, jobs_cost, jobs, 1)
        )
    what = f"{len(jobs)} episodes under max_pressure with {workers} workers, their start included; with one"
    return [
        Row.of_rates("workers", what, *costs, unit="1/s", must_reach=Bound(at="least", value=SHARE_OF_CORES * workers))
    ]
