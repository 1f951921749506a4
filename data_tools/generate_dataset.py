"""Run SUMO episodes, save states at decision points, and label both answers by forking the live simulation.

Examples:
    python data_tools/generate_dataset.py --scenario configs/scenarios/four_way.yaml --out data/four_way \\
        --episodes 12 --validation-episodes 1 --workers 2
    python data_tools/generate_dataset.py --scenario mine.sumocfg --out data/mine --episodes 4

Writes OUT/grpo_dataset.json, OUT/scenario/ (what is built once for a scenario) and OUT/episodes/ (demand, states,
samples of each episode). The same arguments give the same bytes, whatever the number of workers.

Every episode has vehicles of its own, drawn from its seed: from the rates of a scenario or family file, or from the
route files of SUMO's own scenarios (docs/networks.md). Samples of these name the net and the additional files by
absolute paths, so these files have to stay where they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from tqdm import tqdm

from tsc.controllers.opening import opened
from tsc.controllers.signal_plans import PlannedSignals
from tsc.cost.continuation import outcomes_of
from tsc.cost.outcome import TAILS, OutcomeSettings, load_outcome_settings
from tsc.cost.shared_continuations import SharedContinuations
from tsc.errors import ConfigError, TscError, run_main
from tsc.files import REPO_ROOT, folder_lock, sha256_of, write_atomically
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import OWN_PROMPT, PROMPT_HELP, prompt_maker, prompt_version
from tsc.junction.signal_control import SignalControl, read_signals, skipped_lines
from tsc.processes import die_with_parent
from tsc.replays.sample import DATASET_NAMES, SCHEMA_VERSION, Message, Sample, SampleOutcomes
from tsc.rules.controller import Controller
from tsc.rules.random_choice import Random
from tsc.rules.student import Student, StudentFile, load_student
from tsc.rules.tail import tail_controller
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.drawn_scenario import DrawnScenario
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.options import check_replayable_options
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput
from tsc.sumo.version import installed_sumo_version
from tsc.yaml_file import load_yaml

# The seed of SUMO's own random numbers (how drivers dawdle) in episodes that differ by their vehicles. All of them have
# this one, so that a replay worker can keep one simulation for their states.
SUMO_SEED = 1

CONFIGS = REPO_ROOT / "configs"


Behaviour = Literal["static", "gap_out", "max_pressure", "longest_queue", "actuated", "lookahead", "random"]


class DatasetConfig(BaseModel):
    """configs/dataset.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    behaviours: dict[Behaviour, float]
    student_behaviours: dict[Behaviour | Literal["student"], float] = {"student": 1.0}
    behaviour_block_s: int = Field(gt=0)
    warm_up_s: int = Field(ge=0)
    sample_share: float = Field(gt=0, le=1)

    @field_validator("behaviours", "student_behaviours")
    @classmethod
    def _shares_sum_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or min(value.values()) < 0 or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError("shares must be at least 0 and sum to 1")
        return value


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode to run, with everything that a worker process needs.

    split: None means that json_to_parquet draws it. signals: None means those of the scenario's own files.
    """

    scenario: TrafficScenario
    number: int
    split: Literal["train", "val"] | None
    seed: int
    out: Path
    config: DatasetConfig
    outcome: OutcomeSettings
    signals: PlannedSignals | None
    prompt: str
    student: StudentFile | None

    @property
    def folder(self) -> Path:
        return self.out / "episodes" / f"{self.scenario.name}-seed{self.seed:04d}"

    @property
    def samples_file(self) -> Path:
        """It is written last: an episode that has it is complete."""
        return self.folder / "samples.jsonl"


# the progress of all workers, which the parent shows
_decisions_done: Synchronized[int]
_seconds_done: Synchronized[int]


def _prepare_worker(decisions: Synchronized[int], seconds: Synchronized[int], parent_id: int) -> None:
    global _decisions_done, _seconds_done
    die_with_parent(parent_id)
    _decisions_done, _seconds_done = decisions, seconds


def run_episode(episode: Episode) -> None:
    """Run one episode in this process and write its folder, with the samples file last."""
    shutil.rmtree(episode.folder, ignore_errors=True)
    (episode.folder / "states").mkdir(parents=True)
    files = episode.scenario.files(episode.seed, demand_file=episode.folder / "demand.rou.xml")
    if episode.scenario.draws_vehicles:
        files = replace(files, seed=SUMO_SEED)
    if episode.signals is not None:
        planned = episode.signals.files
        files = replace(files, net_file=planned.net_file, additional_files=planned.additional_files)
    lines = [json.dumps(sample.to_json(), separators=(",", ":")) for sample in _samples(episode, files)]
    write_atomically(episode.samples_file, "".join(f"{line}\n" for line in lines).encode())


def _samples(episode: Episode, files: SumoFiles) -> Iterator[Sample]:
    config = episode.config
    # behaviour and sampling draw from generators of their own, so that another sample_share does not change the traffic
    behaviour_draw = random.Random(f"behaviour/{episode.scenario.name}/{episode.seed}")
    sample_draw = random.Random(f"sample/{episode.scenario.name}/{episode.seed}")
    controllers: dict[str, Controller] = {name: tail_controller(name) for name in TAILS}
    controllers["random"] = Random(episode.seed)
    if episode.student is not None:
        controllers["student"] = Student(episode.student)
    messages = prompt_maker(episode.prompt)
    sumo = SumoInput.of(files, episode.out)
    simulation = Simulation(files, saves_states=True)
    wanted = tuple(episode.signals.plans) if episode.signals else episode.scenario.signals.junction_ids
    programs = read_signals(simulation, junction_ids=wanted).programs
    control = SignalControl(simulation, episode.scenario.timing, programs)
    control.start()
    shared = SharedContinuations(control, episode.outcome)
    # the garbage collector would visit every object, and so let forks copy every page
    gc.freeze()
    behaviour = ""
    shares: Mapping[str, float] = config.student_behaviours if episode.student else config.behaviours
    begin_s, end_s = episode.scenario.begin_s, episode.scenario.end_s
    for second in range(begin_s, end_s):
        if (second - begin_s) % config.behaviour_block_s == 0:
            (behaviour,) = behaviour_draw.choices(list(shares), weights=list(shares.values()))
        due = control.due_junctions()
        chosen = [name for name in due if sample_draw.random() < config.sample_share]
        # the horizon of every sample lies within the episode
        if not begin_s + config.warm_up_s <= second <= end_s - episode.outcome.horizon_s:
            chosen = []
        to_label = due if behaviour == "lookahead" else chosen
        continuations = shared.of(to_label)
        outcomes = {name: outcomes_of(each, episode.outcome) for name, each in continuations.items()}
        if chosen:
            state_file = episode.folder / "states" / f"t{second:05d}.xml.gz"
            simulation.save_state(state_file)
            state_sha256, clocks = sha256_of(state_file), control.stored_clocks()
            for name in chosen:
                observation = observe(control, name)
                clock, timing = control.clocks[name], control.timing_of(name)
                yield Sample(
                    schema_version=SCHEMA_VERSION,
                    scenario=episode.scenario.name,
                    episode=episode.number,
                    split=episode.split,
                    behaviour=behaviour,
                    time_s=float(second),
                    prompt_version=prompt_version(episode.prompt),
                    state_file=str(state_file.relative_to(episode.out)),
                    state_sha256=state_sha256,
                    clocks=clocks,
                    sumo=sumo,
                    id=f"{episode.scenario.name}-seed{episode.seed:04d}-t{second:05d}-{name}",
                    junction_id=name,
                    prompt=[Message.model_validate(message) for message in messages(observation)],
                    current_green_elapsed=clock.elapsed_green_s,
                    min_green=timing.min_green_s,
                    max_green=timing.max_green_s,
                    green_extension=timing.green_extension_s,
                    stage=clock.stage,
                    next_stage=control.program(name).next_stage(clock.stage),
                    observation=observation.as_dict(),
                    outcomes=SampleOutcomes(
                        settings=episode.outcome.as_dict(),
                        ends={decision: each.end for decision, each in continuations[name].items()},
                        **outcomes[name].as_dict(),
                    ),
                    expert_decision=outcomes[name].better(),
                )
        if behaviour == "lookahead":
            decisions = {name: outcomes[name].better() or Decision.YES for name in due}
        else:
            decisions = controllers[behaviour].decide(control, due)
        shared.chose(decisions)
        control.advance(decisions)
        with _decisions_done.get_lock():
            _decisions_done.value += len(chosen)
            _seconds_done.value += 1
    simulation.close()


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
        running: dict[Future[None], Episode] = {pool.submit(run_episode, episode): episode for episode in episodes}
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
            pool.shutdown(wait=False, cancel_futures=True)
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
            with episode.samples_file.open(encoding="utf-8") as lines:
                for line in lines:
                    file.write(("," if count else "") + "\n" + line.rstrip("\n"))
                    count += 1
        file.write("\n]\n")
    temporary.replace(path)
    return count


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
        missing = [episode for episode in episodes if not episode.samples_file.exists()]
        if len(missing) < len(episodes):
            print(f"{len(episodes) - len(missing)} of {len(episodes)} episodes are complete")
        if missing:
            run_episodes(missing, min(arguments.workers, len(missing)))
        elif (arguments.out / DATASET_NAMES[0]).exists():
            return
        count = write_dataset(episodes, arguments.out)
        print(f"{count} samples of {len(episodes)} episodes in {arguments.out / DATASET_NAMES[0]}")


if __name__ == "__main__":
    run_main(main)
