"""Rows about the speed of live replays, and about the memory of their process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.alternatives import bare_cost, bare_step_cpu_s, fresh_libsumo_cost, traci_replays
from benchmarks.benchmark_datasets import (
    DEFAULT_SCENARIO,
    city_requests,
    default_dataset,
    make_city,
    samples_of,
    spread,
)
from benchmarks.effort import Effort
from benchmarks.live_replay import live_cost, replay_in_circles, start_cost, stretch_cost
from benchmarks.rows import Bound, Row, fastest
from benchmarks.stopwatch import Cost, in_turn
from benchmarks.traci_replay import traci_cost
from benchmarks.warm_process import warm_processes
from tsc.cost.outcome import load_outcome_settings
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.scenarios.scenario import load_scenario

REWARD_SETTINGS = DEFAULT_SCENARIO.parents[1] / "reward.yaml"
# numbers of decisions
STRETCHES = (4, 8)
# after so many replays, the memory of a worker should not grow any more
FIRST_REPLAYS = 100


def live_states(
    folder: Path, effort: Effort, count: int, *, episode: int | None = None
) -> tuple[list[Sample], list[ReplayRequest]]:
    """`count` labelled samples at even distances, of one episode if given, and the requests to replay them."""
    dataset = default_dataset(folder, effort.episodes)
    samples = spread(samples_of(dataset, episode=episode), count)
    return samples, [ReplayRequest.from_sample(sample, dataset) for sample in samples]


def bare_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays compared with one simulation of the episode from which their states are, by CPU time."""
    scenario = load_scenario(DEFAULT_SCENARIO)
    settings = load_outcome_settings(REWARD_SETTINGS)
    samples, requests = live_states(folder, effort, effort.live_replays, episode=0)
    times_s = [sample.time_s for sample in samples if sample.time_s is not None]
    files = requests[0].sumo.files_in(Path(requests[0].dataset_dir))

    with warm_processes(2) as (live, bare):

        def bare_side() -> Cost:
            steps = bare.call(bare_step_cpu_s, files, scenario.duration_s, scenario.timing)
            return bare_cost(steps, times_s, settings.horizon_s)

        *costs, starts = in_turn(
            effort.repetitions,
            partial(live.call, live_cost, requests, settings),
            bare_side,
            partial(live.call, start_cost, requests, settings),
        )
    what = f"live replays, both answers, {settings.horizon_s} s; the same steps in one bare libsumo simulation"
    bound = Bound(at="least", value=0.5)
    return [
        Row.of_rates("replay-bare", what, *costs, by_cpu=True, unit="1/s of CPU", must_reach=bound),
        start_row("replay-bare-start", starts, costs[0]),
    ]


def start_row(name: str, starts: Sequence[Cost], replays: Sequence[Cost]) -> Row:
    """CPU time before the first second, of all that a replay takes."""
    what = "CPU time of a replay before its first second: files, copies of the process, the state; the whole replay"
    start_ms, replay_ms = (1e3 / fastest(side, by_cpu=True) for side in (starts, replays))
    return Row(name=name, what=what, value=start_ms, beside=replay_ms, unit="ms")


def traci_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays compared with TraCI, one after the other: in real time, and by CPU time for information."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    _, requests = live_states(folder, effort, effort.live_replays, episode=0)
    few = spread(requests, effort.traci_replays)
    with warm_processes(2) as (live, traci):
        costs = in_turn(
            effort.repetitions,
            partial(live.call, live_cost, requests, settings),
            partial(traci.call, traci_cost, traci_replays(few), settings.horizon_s, len(few)),
        )
    what = "live replays, one at a time; TraCI with a new sumo for each answer"
    cpu = "the same by CPU time, without TraCI's waits for sumo"
    return [
        Row.of_rates("replay-traci", what, *costs, unit="1/s", must_reach=Bound(at="least", value=30)),
        Row.of_rates("replay-traci-cpu", cpu, *costs, by_cpu=True, unit="1/s of CPU"),
    ]


def city_rows(folder: Path, effort: Effort) -> list[Row]:
    """Live replays in a city net compared with libsumo started anew for each answer, by CPU time."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    with warm_processes(3) as (maker, live, fresh):
        maker.call(make_city, folder)
        requests = spread(city_requests(folder), effort.city_replays)
        *costs, starts = in_turn(
            effort.repetitions,
            partial(live.call, live_cost, requests, settings),
            partial(fresh.call, fresh_libsumo_cost, requests, settings.horizon_s),
            partial(live.call, start_cost, requests, settings),
        )
    what = "live replays in a city net; libsumo.start and close for each answer"
    bound = Bound(at="least", value=3.5)
    return [
        Row.of_rates("replay-city", what, *costs, by_cpu=True, unit="1/s of CPU", must_reach=bound),
        start_row("replay-city-start", starts, costs[0]),
    ]


def stretch_rows(folder: Path, effort: Effort) -> list[Row]:
    """Stretches of several decisions with a replay for each question, compared with one replay per stretch, by CPU
    time."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    _, requests = live_states(folder, effort, effort.live_replays)
    rows = []
    with warm_processes(1) as (worker,):
        for number in STRETCHES:
            costs = in_turn(
                effort.repetitions,
                partial(worker.call, stretch_cost, requests, settings, number, asked=True),
                partial(worker.call, stretch_cost, requests, settings, number, asked=False),
            )
            what = f"stretches of {number} decisions, a replay for each question; one replay per stretch"
            rows.append(Row.of_rates(f"stretch-{number}", what, *costs, by_cpu=True, unit="1/s of CPU"))
    return rows


def memory_rows(folder: Path, effort: Effort) -> list[Row]:
    """The memory of one worker that replays the same FIRST_REPLAYS states again and again."""
    settings = load_outcome_settings(REWARD_SETTINGS)
    _, requests = live_states(folder, effort, FIRST_REPLAYS)
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
