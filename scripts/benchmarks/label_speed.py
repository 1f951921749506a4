"""Rows about making a dataset: how fast decisions are labelled, where that time goes, and the space on disk."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from benchmarks.alternatives import bare_cost, bare_step_cpu_s
from benchmarks.benchmark_datasets import DEFAULT_SCENARIO, default_dataset
from benchmarks.effort import Effort
from benchmarks.rows import Bound, Row
from benchmarks.stopwatch import Cost, cost_of, cpu_time_s, in_turn
from benchmarks.warm_process import warm_processes
from data_tools import dataset_episode
from data_tools.dataset_episode import SAMPLES_NAME, DatasetConfig, Episode, run_episode
from data_tools.generate_dataset import opened_signals
from tsc.cost.outcome import load_outcome_settings
from tsc.cost.shared_continuations import SharedContinuations
from tsc.files import REPO_ROOT
from tsc.junction.prompt import OWN_PROMPT
from tsc.replays.state_archive import ARCHIVE_NAME, state_bytes
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, settings_of
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.yaml_file import load_yaml

CONFIGS = REPO_ROOT / "configs"
# by row: the network, and what the rate of labels must be of the rate of bare steps
LABELLED = {
    "label-four_way": (str(DEFAULT_SCENARIO), 0.5),
    "label-cologne1": ("resco:cologne1", 0.6),
    "label-ingolstadt7": ("resco:ingolstadt7", 0.7),
}
TIME_ROWS = ("label-time-continuations", "label-time-states", "label-time-rest")
LABEL_ROWS = {name: (name, *(TIME_ROWS if name == "label-four_way" else ())) for name in LABELLED}
WORKER_EPISODES = 4
# runs a command, and prints the CPU time (s) and the memory (MiB) that it took
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
PANDAS = "import pandas, sys; pandas.read_json(sys.argv[1]).to_parquet(sys.argv[2])"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """times_s: of the decisions, from the begin of the episode. parts_cpu_s: of continuations, of saving states."""

    cost: Cost
    times_s: list[float]
    parts_cpu_s: tuple[float, float]


def labelled_episode(episode: Episode) -> Labelled:
    """Run the episode as a worker of generate_dataset does. Call this in a new process."""
    spent_s = {"continuations": 0.0, "states": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin_s = cpu_time_s()
            try:
                return function(*arguments)
            finally:
                spent_s[part] += cpu_time_s() - begin_s

        return call

    SharedContinuations.of = timed("continuations", SharedContinuations.of)  # type: ignore[method-assign]
    Simulation.saved_state = timed("states", Simulation.saved_state)  # type: ignore[method-assign]
    shutil.rmtree(episode.folder, ignore_errors=True)
    cost = cost_of(lambda: run_episode(episode), 1)
    with gzip.open(episode.samples_file, "rt") as lines:
        times_s = [json.loads(line)["time_s"] - episode.scenario.begin_s for line in lines]
    return Labelled(
        cost=replace(cost, num_units=len(times_s)),
        times_s=times_s,
        parts_cpu_s=(spent_s["continuations"], spent_s["states"]),
    )


def in_new_process(episode: Episode) -> Labelled:
    with warm_processes(1) as (process,):
        return process.call(labelled_episode, episode)


def planned_episode(word: str, folder: Path, duration_s: int) -> Episode:
    """The first training episode of a network. A scenario file itself says how long it lasts."""
    parser = argparse.ArgumentParser()
    add_scenario_options(parser, source="")
    given = [] if word == str(DEFAULT_SCENARIO) else ["--duration", str(duration_s)]
    (scenario,) = traffic_scenarios([word], folder / "scenario", settings_of(parser.parse_args(given)))
    scenario.prepare()
    return Episode(
        scenario=scenario,
        number=0,
        split="train",
        seed=scenario.episode_seed("train", 0),
        out=folder,
        config=load_yaml(CONFIGS / "dataset.yaml", DatasetConfig),
        outcome=load_outcome_settings(CONFIGS / "reward.yaml"),
        signals=opened_signals(scenario, folder / "scenario"),
        prompt=OWN_PROMPT,
        student=None,
    )


def bare_side(episode: Episode, files: SumoFiles, times_s: Sequence[float]) -> Cost:
    """Bare steps: the episode once, and for each decision twice the horizon."""
    scenario = episode.scenario
    steps = bare_step_cpu_s(files, scenario.end_s - scenario.begin_s, scenario.timing)
    cost = bare_cost(steps, times_s, episode.outcome.horizon_s)
    total_s = cost.cpu_s + sum(steps)
    return Cost(num_units=cost.num_units, wall_s=total_s, cpu_s=total_s)


def label_rows(folder: Path, effort: Effort, *, name: str) -> list[Row]:
    """Labels compared with the bare steps that two continuations of each decision take, by CPU time."""
    word, at_least = LABELLED[name]
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    episode = planned_episode(word, out, effort.label_s)
    files = dataset_episode.files_of(episode, out / "demand.rou.xml")
    labelled: list[Labelled] = []

    def label() -> Cost:
        labelled.append(in_new_process(episode))
        return labelled[-1].cost

    with warm_processes(1) as (bare,):
        costs = in_turn(
            effort.label_repetitions, label, lambda: bare.call(bare_side, episode, files, labelled[-1].times_s)
        )
    what = "decisions labelled by one worker; their continuations and the episode as bare steps"
    bound = Bound(at="least", value=at_least)
    rows = [Row.of_rates(name, what, *costs, by_cpu=True, unit="1/s of CPU", must_reach=bound)]
    if name == "label-four_way":
        best = min(labelled, key=lambda each: each.cost.cpu_s)
        continuations_s, states_s = best.parts_cpu_s
        parts_s = (continuations_s, states_s, best.cost.cpu_s - continuations_s - states_s)
        whats = ("forks with their continuations", "saving states", "everything else: episode, prompts, files")
        rows += [
            Row(name=row, what=f"CPU time of a label: {of}", value=1e3 * part_s / len(best.times_s), unit="ms")
            for row, of, part_s in zip(TIME_ROWS, whats, parts_s, strict=True)
        ]
    return rows


def generation(out: Path, duration_s: int) -> list[str]:
    """The command that makes the dataset OUT of a shorter four_way."""
    scenario = out.parent / "short.yaml"
    begins_s = [quarter * duration_s // 4 for quarter in range(4)]
    text = DEFAULT_SCENARIO.read_text().replace("duration_s: 3600", f"duration_s: {duration_s}")
    scenario.write_text(text.replace("[0, 900, 1800, 2700]", str(begins_s)))
    command = [sys.executable, "data_tools/generate_dataset.py", "--scenario", str(scenario), "--out", str(out)]
    return [*command, "--episodes", str(WORKER_EPISODES), "--validation-episodes", "0"]


def generation_cost(out: Path, workers: int, duration_s: int) -> Cost:
    """The whole command, with its start. One worker has one core for itself and its forks."""
    shutil.rmtree(out, ignore_errors=True)
    cores = sorted(os.sched_getaffinity(0))[:workers]
    command = [*generation(out, duration_s), "--workers", str(workers)]
    begin = time.perf_counter()
    subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), *command], cwd=REPO_ROOT, check=True, capture_output=True
    )
    wall_s = time.perf_counter() - begin
    return Cost(num_units=WORKER_EPISODES, wall_s=wall_s, cpu_s=wall_s)


def label_worker_rows(folder: Path, effort: Effort) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    sides = [partial(generation_cost, folder / "label-workers", workers, effort.label_s) for workers in (2, 1)]
    costs = in_turn(effort.label_repetitions, *sides)
    what = f"{WORKER_EPISODES} episodes with two workers on two cores; with one on one core"
    return [Row.of_rates("label-workers", what, *costs, unit="1/s", must_reach=Bound(at="least", value=1.8))]


def ray_cost(out: Path, nodes: int, duration_s: int) -> Cost:
    """The same on Ray nodes of one core each, without the start of Ray and of the command."""
    shutil.rmtree(out, ignore_errors=True)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        for core, node in zip(sorted(os.sched_getaffinity(0)), cluster.list_all_nodes(), strict=False):
            for info in node.all_processes["raylet"]:
                raylet = info.process.pid
                workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
                for process_id in (raylet, *map(int, workers)):
                    os.sched_setaffinity(process_id, {core})
        command = [*generation(out, duration_s), "--ray-address", cluster.address]
        done = subprocess.run(command, cwd=REPO_ROOT, check=True, capture_output=True, text=True)
    finally:
        cluster.shutdown()
    (wall_s,) = re.findall(r"^ran \d+ episodes in ([\d.]+) s$", done.stdout, re.MULTILINE)
    return Cost(num_units=WORKER_EPISODES, wall_s=float(wall_s), cpu_s=float(wall_s))


def ray_rows(folder: Path, effort: Effort) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    costs = in_turn(
        effort.label_repetitions,
        *(partial(ray_cost, folder / "label-ray", nodes, effort.label_s) for nodes in (2, 1)),
    )
    what = f"{WORKER_EPISODES} episodes on two Ray nodes of one core each; on one"
    return [Row.of_rates("label-ray", what, *costs, unit="1/s", must_reach=Bound(at="least", value=1.7))]


def many_samples(folder: Path, effort: Effort, count: int) -> Path:
    """A JSON array of many samples: those of four_way again and again, with other ids and episodes."""
    dataset = default_dataset(folder, effort.episodes)
    path = dataset / f"many-{count}.json"
    if not path.exists():
        samples = json.loads((dataset / "grpo_dataset.json").read_text())
        with write_through(path) as file:
            for number in range(count):
                again, index = divmod(number, len(samples))
                sample = samples[index] | {"id": f"{samples[index]['id']}-{again}", "episode": 1000 * again}
                file.write(("," if number else "[") + "\n" + json.dumps(sample, separators=(",", ":")))
            file.write("\n]\n")
    return path


@contextmanager
def write_through(path: Path) -> Iterator[IO[str]]:
    """A file that appears when it is complete."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        yield file
    temporary.replace(path)


def command_cost(command: Sequence[str], num_units: int) -> tuple[Cost, float]:
    """The cost of a command, and the most memory that one of its processes had (MiB)."""
    words = [sys.executable, "-c", MEASURED, *command]
    begin = time.perf_counter()
    done = subprocess.run(words, cwd=REPO_ROOT, check=True, capture_output=True, text=True)
    cpu_s, mebibytes = map(float, done.stdout.split()[-2:])
    return Cost(num_units=num_units, wall_s=time.perf_counter() - begin, cpu_s=cpu_s), mebibytes


def parquet_rows(folder: Path, effort: Effort) -> list[Row]:
    """json_to_parquet, with all its checks, compared with pandas, which only reads and writes."""
    path = many_samples(folder, effort, effort.parquet_samples)
    out = folder / "parquet"
    out.mkdir(exist_ok=True)
    pandas = [sys.executable, "-c", PANDAS, str(path), str(out / "pandas.parquet")]

    def side(command: Sequence[str]) -> Cost:
        return command_cost(command, effort.parquet_samples)[0]

    costs = in_turn(effort.label_repetitions, partial(side, conversion(path, out)), partial(side, pandas))
    what = f"json_to_parquet of {effort.parquet_samples:,} samples; pandas.read_json and to_parquet"
    bound = Bound(at="least", value=2)
    return [Row.of_rates("parquet", what, *costs, by_cpu=True, unit="1/s of CPU", must_reach=bound)]


def conversion(path: Path, out: Path) -> list[str]:
    return [sys.executable, "data_tools/json_to_parquet.py", "--input", str(path), "--output", str(out), "--resplit"]


def parquet_memory_rows(folder: Path, effort: Effort) -> list[Row]:
    path = many_samples(folder, effort, effort.memory_samples)
    try:
        _, mebibytes = command_cost(conversion(path, folder / "parquet"), effort.memory_samples)
    finally:
        path.unlink()  # large
    bound = Bound(at="most", value=600e6 / 2**20)
    what = f"json_to_parquet of {effort.memory_samples:,} samples"
    return [Row(name="parquet-memory", what=what, value=mebibytes, unit="MiB", must_reach=bound)]


def size_rows(folder: Path, effort: Effort) -> list[Row]:
    """The space that the samples of four_way take, compared with a gzip file for each state, and JSON."""
    dataset = default_dataset(folder, effort.episodes)
    text = (dataset / "grpo_dataset.json").read_bytes()
    samples = json.loads(text)
    states = {sample["state_file"] for sample in samples}
    plain = sum(len(gzip.compress(state_bytes(dataset / name), compresslevel=6)) for name in states) + len(text)
    written = [path for name in (ARCHIVE_NAME, SAMPLES_NAME) for path in dataset.glob(f"episodes/*/{name}")]
    ours = len(text) + sum(path.stat().st_size for path in written)
    what = "a sample with its state on disk; gzip files of states, and JSON"
    return [
        Row(name="sample-bytes", what=what, value=ours / len(samples), beside=plain / len(samples), unit="bytes",
            must_reach=Bound(at="most", value=0.4))
    ]  # fmt: skip
