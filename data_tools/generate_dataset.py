"""Run SUMO episodes, save states at decision points, and label both answers by forking the live simulation.

Examples:
    python data_tools/generate_dataset.py --scenario configs/scenarios/four_way.yaml --out data/four_way \\
        --episodes 12 --validation-episodes 1 --workers 2
    python data_tools/generate_dataset.py --scenario mine.sumocfg --out data/mine --episodes 4

Writes OUT/grpo_dataset.json, OUT/scenario/ (what is built once for a scenario) and OUT/episodes/ (demand, states,
samples of each episode; docs/large_datasets.md). The same arguments give the same bytes, whatever the number of workers
or machines.

Every episode has vehicles of its own, drawn from its seed: from the rates of a scenario or family file, or from the
route files of SUMO's own scenarios (docs/networks.md). Samples of these name the net and the additional files by
absolute paths, so these files have to stay where they are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.dataset_episode import DatasetConfig, Episode, run_episode
from data_tools.ray_episodes import run_on_ray
from tsc.controllers.opening import opened
from tsc.controllers.signal_plans import PlannedSignals
from tsc.cost.outcome import OutcomeSettings, load_outcome_settings
from tsc.errors import ConfigError, TscError, run_main
from tsc.files import REPO_ROOT, folder_lock, write_atomically
from tsc.junction.prompt import OWN_PROMPT, PROMPT_HELP, prompt_maker, prompt_version
from tsc.junction.signal_control import skipped_lines
from tsc.processes import die_with_parent
from tsc.replays.sample import DATASET_NAMES
from tsc.rules.student import StudentFile, load_student
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.drawn_scenario import DrawnScenario
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.options import check_replayable_options
from tsc.sumo.version import installed_sumo_version
from tsc.yaml_file import load_yaml

CONFIGS = REPO_ROOT / "configs"

_SHOWN_AFTER_S = 60


# the progress of all workers, which the parent shows
_decisions_done: Synchronized[int]
_seconds_done: Synchronized[int]


def _prepare_worker(decisions: Synchronized[int], seconds: Synchronized[int], parent_id: int) -> None:
    global _decisions_done, _seconds_done
    die_with_parent(parent_id)
    _decisions_done, _seconds_done = decisions, seconds


def _run_counted(episode: Episode) -> None:
    def on_second(decisions: int) -> None:
        with _decisions_done.get_lock():
            _decisions_done.value += decisions
            _seconds_done.value += 1

    run_episode(episode, on_second)


def plan_episodes(
    scenarios: list[TrafficScenario],
    arguments: argparse.Namespace,
    config: DatasetConfig,
    outcomes: Mapping[str, OutcomeSettings],
    signals: Mapping[str, PlannedSignals | None],
    student: StudentFile | None,
) -> list[Episode]:
    """The training and validation episodes of every scenario, in the order of the dataset. outcomes, signals: by
    scenario.

    Raises ScenarioError if a scenario does not have seeds for so many episodes.
    """
    counts = (("train", "train", arguments.episodes), ("validation", "val", arguments.validation_episodes))
    return [
        Episode(
            scenario=scenario,
            number=arguments.first_episode + number,
            split=split if arguments.validation_episodes else None,  # type: ignore[arg-type]
            seed=scenario.episode_seed(seeds, arguments.first_episode + number),  # type: ignore[arg-type]
            out=arguments.out,
            config=config,
            outcome=outcomes[scenario.name],
            signals=signals.get(scenario.name),
            prompt=arguments.prompt,
            student=student,
        )
        for scenario in scenarios
        for seeds, split, count in counts
        for number in range(count)
    ]


def opened_signals(scenario: TrafficScenario, folder: Path) -> PlannedSignals | None:
    """The signals of SUMO's own files, with programs in `folder` that we can control; None for a scenario file, whose
    net is built to be controlled.

    Raises ConfigError or ScenarioError if saved states could not be made or replayed.
    """
    if isinstance(scenario, DrawnScenario):
        return None
    check_replayable_options(scenario.files(scenario.episode_seed("train", 0)).more_options)
    return opened(scenario, folder / scenario.name)


def prepare_folder(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings to the folder, or check that an earlier run had the same settings.

    Raises ConfigError if the folder already holds a dataset that is not to be resumed, or one with other settings.
    """
    path = out / "generation.json"
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if path.exists():
        if not resume:
            raise ConfigError(f"{out} already has a dataset: continue it with --resume, or choose another --out")
        begun = json.loads(path.read_text())
        differing = sorted(key for key in settings.keys() | begun.keys() if settings.get(key) != begun.get(key))
        if differing:
            raise ConfigError(
                f"the dataset in {out} has other settings ({', '.join(differing)}; see {path}): choose another --out, "
                "or delete this one"
            )
        return
    write_atomically(path, text.encode())


def run_episodes(episodes: list[Episode], workers: int) -> None:
    """Run each episode in its own process. Raises what an episode raises."""
    context = multiprocessing.get_context("spawn")
    decisions, seconds = context.Value("l", 0), context.Value("l", 0)
    total_s = sum(episode.scenario.duration_s for episode in episodes)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_prepare_worker,
        initargs=(decisions, seconds, os.getpid()),
        max_tasks_per_child=1,
    )
    bar = tqdm(total=total_s, unit=" s simulated", unit_scale=True, disable=None, mininterval=0.5)
    begin = time.monotonic()
    with pool, bar:
        running: dict[Future[None], Episode] = {pool.submit(_run_counted, episode): episode for episode in episodes}
        pending = set(running)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(seconds.value - bar.n)
                bar.set_postfix_str(f"{decisions.value / (time.monotonic() - begin):.1f} decisions/s", refresh=False)
                for future in done:
                    try:
                        future.result()
                    except BrokenProcessPool as error:
                        raise TscError(
                            f"a worker died, perhaps in episode {running[future].folder.name} (out of memory, or "
                            "killed): run the same command with --resume"
                        ) from error
        except BaseException:
            for future in pending:
                future.cancel()
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
    elapsed_s = time.monotonic() - begin
    print(f"labelled {decisions.value} decisions in {elapsed_s:.0f} s ({decisions.value / elapsed_s:.1f} decisions/s)")


def write_dataset(episodes: list[Episode], out: Path) -> int:
    """Join the samples of the episodes, in their order, into OUT/grpo_dataset.json. Returns the number of samples."""
    path = out / DATASET_NAMES[0]
    temporary = out / ".grpo_dataset.json.tmp"
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for episode in episodes:
            for line in _lines_of(episode):
                file.write(("," if count else "") + "\n" + line.rstrip("\n"))
                count += 1
        file.write("\n]\n")
    temporary.replace(path)
    return count


def _lines_of(episode: Episode) -> Iterator[str]:
    """The samples of an episode. Raises ConfigError if the file is missing or damaged."""
    path = episode.samples_file
    for _ in range(_SHOWN_AFTER_S):  # a shared folder may show what another machine wrote a little later
        if os.listdir(path.parent.parent) and path.exists():
            break
        time.sleep(1)
    else:
        raise ConfigError(f"{path} is not there: run the same command with --resume")
    try:
        if not path.stat().st_size:
            raise EOFError("it is empty")
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{episode.samples_file} is damaged ({error}): delete {episode.folder}, and run the same command with "
            "--resume"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenario", action="extend", nargs="+", required=True, metavar="WORD", help=f"{WORDS_HELP}; one or more"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    parser.add_argument(
        "--episodes", type=at_least(1), default=12, help="training episodes per scenario (default: %(default)s)"
    )
    parser.add_argument(
        "--validation-episodes",
        type=at_least(0),
        default=1,
        help="validation episodes per scenario; 0: json_to_parquet splits the training episodes by time block "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--first-episode",
        type=at_least(0),
        default=0,
        metavar="N",
        help="number of the first episode, so that several datasets of a scenario have different demand (default: 0)",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=multiprocessing.cpu_count(), help="processes (default: cores)"
    )
    parser.add_argument(
        "--ray-address",
        metavar="IP:PORT",
        help="run the episodes on all nodes of this Ray cluster, one for each of their CPUs (docs/large_datasets.md)",
    )
    parser.add_argument("--config", type=Path, default=CONFIGS / "dataset.yaml", help="behaviours and sampling")
    parser.add_argument(
        "--reward",
        type=Path,
        default=CONFIGS / "reward.yaml",
        help="the file whose section `outcome` says how long a replay runs and what it measures",
    )
    parser.add_argument("--prompt", default=OWN_PROMPT, metavar="NAME", help=f"what makes the prompts: {PROMPT_HELP}")
    parser.add_argument(
        "--student",
        type=Path,
        metavar="FILE",
        help="a copy of a policy (scripts/fit_student.py), which decides most of the time: --config's "
        "student_behaviours hold instead of its behaviours",
    )
    add_scenario_options(parser, source="the scenario's own")
    parser.add_argument("--resume", action="store_true", help="continue an earlier run of the same command")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()

    config = load_yaml(arguments.config, DatasetConfig)
    load_outcome_settings(arguments.reward)  # a wrong file is told before a net is built
    student = load_student(arguments.student) if arguments.student else None
    asked = settings_of(arguments)
    prompt_maker(arguments.prompt)
    # the faults of scenarios show here, before anything is written into --out
    with tempfile.TemporaryDirectory(prefix="tsc-scenarios-") as scratch:
        scenarios = traffic_scenarios(arguments.scenario, Path(scratch), asked)
        outcomes = {scenario.name: load_outcome_settings(arguments.reward, scenario.name) for scenario in scenarios}
        plan_episodes(scenarios, arguments, config, outcomes, {}, student)
        for scenario in scenarios:
            opened_signals(scenario, Path(scratch))
        settings = {
            "scenarios": [scenario.definition() for scenario in scenarios],
            "episodes": arguments.episodes,
            "validation_episodes": arguments.validation_episodes,
            "first_episode": arguments.first_episode,
            "config": config.model_dump(mode="json"),
            "outcomes": {name: outcome.as_dict() for name, outcome in outcomes.items()},
            "prompt_version": prompt_version(arguments.prompt),
            "sumo_version": installed_sumo_version(),
        }
        if student is not None:
            settings["student"] = student.digest
        # a scenario file itself says the timing of its greens
        signals_asked = {
            scenario.name: {**vars(scenario.timing), **scenario.signals.as_dict()}
            for scenario in scenarios
            if not isinstance(scenario, DrawnScenario) or scenario.signals.junction_ids
        }
        if signals_asked:
            settings["signals"] = signals_asked
    with folder_lock(arguments.out, "the dataset"):
        prepare_folder(arguments.out, settings, arguments.resume)
        scenarios = traffic_scenarios(arguments.scenario, arguments.out / "scenario", asked)
        signals = {}
        for scenario in scenarios:
            scenario.prepare()
            signals[scenario.name] = planned = opened_signals(scenario, arguments.out / "scenario")
            if scenario.note:
                print(f"scenario {scenario.name}: {scenario.note}")
            for line in skipped_lines(planned.skipped if planned else {}):
                print(line)
        episodes = plan_episodes(scenarios, arguments, config, outcomes, signals, student)
        for left_by_a_kill in (arguments.out / "episodes").glob(".*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        missing = [episode for episode in episodes if not episode.is_complete]
        if len(missing) < len(episodes):
            print(f"{len(episodes) - len(missing)} of {len(episodes)} episodes are complete")
        if missing and arguments.ray_address:
            run_on_ray(missing, arguments.ray_address)
        elif missing:
            run_episodes(missing, min(arguments.workers, len(missing)))
        elif any((arguments.out / name).exists() for name in DATASET_NAMES):
            return
        count = write_dataset(episodes, arguments.out)
        print(f"{count} samples of {len(episodes)} episodes in {arguments.out / DATASET_NAMES[0]}")


if __name__ == "__main__":
    run_main(main)
