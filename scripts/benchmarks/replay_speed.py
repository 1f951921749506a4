"""Rows about the speed of live replays, and about the memory of their process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.alternatives import bare_cost, bare_step_cpu_s, fresh_libsumo_cost, fresh_traci_cost
from benchmarks.benchmark_datasets import (
    DEFAULT_SCENARIO,
    city_requests,
    default_dataset,
    make_city,
    samples_of,
    spread,
)
from benchmarks.effort import Effort
from benchmarks.live_replay import live_cost, replay_in_circles, stretch_cost
from benchmarks.rows import Bound, Row
from benchmarks.stopwatch import Cost, in_turn
from benchmarks.warm_process import warm_processes
from tsc.cost.outcome import load_outcome_settings
from tsc.replays.request import ReplayRequest
from tsc.scenarios.scenario import load_scenario

REWARD_SETTINGS = DEFAULT_SCENARIO.parents[1] / "reward.yaml"
# numbers of decisions
STRETCHES = (4, 8)
# after so many replays, the memory of a worker should not grow any more
FIRST_REPLAYS = 100


def bare_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays compared with one simulation of the episode from which their states are, by CPU time."""
    scenario = load_scenario(DEFAULT_SCENARIO)
    settings = load_outcome_settings(REWARD_SETTINGS)
    dataset = default_dataset(folder, effort.episodes)
    samples = spread(samples_of(dataset, episode=0), effort.live_replays)
    requests = [ReplayRequest.from_sample(sample, dataset) for sample in samples]
    times_s = [sample.time_s for sample in samples if sample.time_s is not None]
    files = requests[0].sumo.files_in(dataset)

    with warm_processes(2) as (live, bare):

        def bare_side() -> Cost:
            steps = bare.call(bare_step_cpu_s, files, scenario.duration_s, scenario.timing)
            return bare_cost(steps, times_s, settings.horizon_s)

        live_costs, bare_costs = in_turn(
            effort.repetitions, lambda: live.call(live_cost, requests, settings), bare_side
        )
    return [
        Row.of_medians(
            name="replay-bare",
            what=f"live replays, both answers, {settings.horizon_s} s; the same steps in one bare libsumo simulation",
            values=[cost.rate_per_core_s for cost in live_costs],
            beside=[cost.rate_per_core_s for cost in bare_costs],
            unit="1/s of CPU",
            must_reach=Bound(at="least", value=0.7),
        )
    ]


def traci_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays compared with TraCI, one after the other: in real time, and by CPU time for information."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    dataset = default_dataset(folder, effort.episodes)
    samples = spread(samples_of(dataset, episode=0), effort.live_replays)
    requests = [ReplayRequest.from_sample(sample, dataset) for sample in samples]
    few = spread(requests, effort.traci_replays)
    with warm_processes(1) as (live,):
        live_costs, traci_costs = in_turn(
            effort.repetitions,
            lambda: live.call(live_cost, requests, settings),
            lambda: fresh_traci_cost(few, settings.horizon_s),
        )
    return [
        Row.of_medians(
            name="replay-traci",
            what="live replays, one at a time; TraCI with a new sumo for each answer",
            values=[cost.rate_per_s for cost in live_costs],
            beside=[cost.rate_per_s for cost in traci_costs],
            unit="1/s",
            must_reach=Bound(at="least", value=30),
        ),
        Row.of_medians(
            name="replay-traci-cpu",
            what="the same by CPU time, without TraCI's waits for sumo",
            values=[cost.rate_per_core_s for cost in live_costs],
            beside=[cost.rate_per_core_s for cost in traci_costs],
            unit="1/s of CPU",
        ),
    ]


def city_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays in a city net compared with libsumo started anew for each answer, by CPU time."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    with warm_processes(3) as (maker, live, fresh):
        maker.call(make_city, folder)
        requests = spread(city_requests(folder), effort.city_replays)
        live_costs, fresh_costs = in_turn(
            effort.repetitions,
            lambda: live.call(live_cost, requests, settings),
            lambda: fresh.call(fresh_libsumo_cost, requests, settings.horizon_s),
        )
    return [
        Row.of_medians(
            name="replay-city",
            what="live replays in a city net; libsumo.start and close for each answer",
            values=[cost.rate_per_core_s for cost in live_costs],
            beside=[cost.rate_per_core_s for cost in fresh_costs],
            unit="1/s of CPU",
            must_reach=Bound(at="least", value=3),
        )
    ]


def stretch_rows(folder: Path, effort: Effort) -> list[Row]:
    """Stretches of several decisions with a replay for each question, compared with one replay per stretch, by CPU
    time."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    dataset = default_dataset(folder, effort.episodes)
    samples = spread(samples_of(dataset), effort.live_replays)
    requests = [ReplayRequest.from_sample(sample, dataset) for sample in samples]
    rows = []
    with warm_processes(1) as (worker,):
        for number in STRETCHES:
            asked, at_once = in_turn(
                effort.repetitions,
                partial(worker.call, stretch_cost, requests, settings, number, asked=True),
                partial(worker.call, stretch_cost, requests, settings, number, asked=False),
            )
            rows.append(
                Row.of_medians(
                    name=f"stretch-{number}",
                    what=f"stretches of {number} decisions, a replay for each question; one replay per stretch",
                    values=[cost.rate_per_core_s for cost in asked],
                    beside=[cost.rate_per_core_s for cost in at_once],
                    unit="1/s of CPU",
                )
            )
    return rows


def memory_rows(folder: Path, effort: Effort) -> list[Row]:
    """The memory of one worker that replays the same FIRST_REPLAYS states again and again."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    dataset = default_dataset(folder, effort.episodes)
    samples = spread(samples_of(dataset), FIRST_REPLAYS)
    requests = [ReplayRequest.from_sample(sample, dataset) for sample in samples]
    with warm_processes(1) as (worker,):
        first_mib = worker.call(replay_in_circles, requests, settings, FIRST_REPLAYS)
        last_mib = worker.call(replay_in_circles, requests, settings, effort.memory_replays - FIRST_REPLAYS)
    return [
        Row(
            name="worker-memory",
            what=f"a worker and its largest fork after {effort.memory_replays:,} replays; after {FIRST_REPLAYS}",
            value=last_mib,
            beside=first_mib,
            unit="MiB",
            must_reach=Bound(at="most", value=1.2),
        )
    ]
