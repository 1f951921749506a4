"""One episode of a dataset: the simulation, its saved states, and the outcomes of both answers at every decision."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tsc.controllers.signal_plans import PlannedSignals
from tsc.cost.continuation import outcomes_of
from tsc.cost.outcome import TAILS, OutcomeSettings
from tsc.cost.shared_continuations import SharedContinuations
from tsc.errors import DISK_FULL, TscError, run_main
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import prompt_maker, prompt_version
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.processes import die_with_parent
from tsc.replays.sample import SCHEMA_VERSION, Message, Sample, SampleOutcomes
from tsc.replays.state_archive import ARCHIVE_NAME, StateArchiveWriter
from tsc.rules.controller import Controller
from tsc.rules.random_choice import Random
from tsc.rules.student import Student, StudentFile
from tsc.rules.tail import tail_controller
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput, name_in_dataset

# The seed of SUMO's own random numbers (how drivers dawdle) in episodes that differ by their vehicles. All of them have
# this one, so that a replay worker can keep one simulation for their states.
SUMO_SEED = 1

DEMAND_NAME = "demand.rou.xml"
SAMPLES_NAME = "samples.jsonl.gz"

Behaviour = Literal[
    "static", "gap_out", "max_pressure", "longest_queue", "actuated", "delay_based", "lookahead", "random"
]


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
        """Earlier versions did not compress it, and did not write the episode's folder as a whole."""
        plain = self.folder / SAMPLES_NAME.removesuffix(".gz")
        return plain if plain.exists() else self.folder / SAMPLES_NAME

    @property
    def is_complete(self) -> bool:
        return self.samples_file.exists()


def run_episode(episode: Episode, on_second: Callable[[int], None] = lambda _: None) -> int:
    """Run one episode in this process, and return the number of its samples. Use a new process for each episode.

    on_second: is called after each simulated second with the number of decisions that were labelled in it.
    The episode's folder appears when it is complete. Another process may run the same episode at the same time.
    Raises TscError if the disk is full.
    """
    folder = episode.folder.with_name(f".{episode.folder.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        num_samples = _write_episode(episode, folder, on_second)
        _sync(folder)
        if not episode.is_complete:
            shutil.rmtree(episode.folder, ignore_errors=True)  # left half-made by an earlier version
            try:
                folder.rename(episode.folder)
            except OSError:
                if not episode.is_complete:  # else the other process was first
                    raise
        return num_samples
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise TscError(
            f"cannot write {folder}: {error.strerror}: make room there, and run the same command with --resume"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Let the disk have the folder's files, so that a loss of power cannot leave an episode with empty ones."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files_of(episode: Episode, demand_file: Path) -> SumoFiles:
    """What the episode's simulation is started from. Its demand is drawn and written to demand_file."""
    files = episode.scenario.files(episode.seed, demand_file=demand_file)
    if episode.scenario.draws_vehicles:
        files = replace(files, seed=SUMO_SEED)
    if episode.signals is not None:
        planned = episode.signals.files
        files = replace(files, net_file=planned.net_file, additional_files=planned.additional_files)
    return files


def _write_episode(episode: Episode, folder: Path, on_second: Callable[[int], None]) -> int:
    files = files_of(episode, folder / DEMAND_NAME)
    # the folder has another name as long as the episode runs
    sumo = SumoInput.of(files, episode.out)
    drawn, kept = (name_in_dataset(each / DEMAND_NAME, episode.out) for each in (folder, episode.folder))
    names = tuple(kept if name == drawn else name for name in sumo.route_files)
    sumo = sumo.model_copy(update={"route_files": names})
    with StateArchiveWriter(folder / ARCHIVE_NAME) as states:
        samples = _samples(episode, files, sumo, states, on_second)
        lines = [json.dumps(sample.to_json(), separators=(",", ":")) + "\n" for sample in samples]
    (folder / SAMPLES_NAME).write_bytes(gzip.compress("".join(lines).encode(), compresslevel=6, mtime=0))
    return len(lines)


def _samples(
    episode: Episode,
    files: SumoFiles,
    sumo: SumoInput,
    states: StateArchiveWriter,
    on_second: Callable[[int], None],
) -> Iterator[Sample]:
    config = episode.config
    # behaviour and sampling draw from generators of their own, so that another sample_share does not change the traffic
    behaviour_draw = random.Random(f"behaviour/{episode.scenario.name}/{episode.seed}")
    sample_draw = random.Random(f"sample/{episode.scenario.name}/{episode.seed}")
    controllers: dict[str, Controller] = {name: tail_controller(name) for name in TAILS}
    controllers["random"] = Random(episode.seed)
    if episode.student is not None:
        controllers["student"] = Student(episode.student)
    messages = prompt_maker(episode.prompt)
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
            name, state = f"t{second:05d}.xml", simulation.saved_state()
            states.add(name, state)
            state_file = episode.folder.relative_to(episode.out) / ARCHIVE_NAME / name
            state_sha256, clocks = hashlib.sha256(state).hexdigest(), control.stored_clocks()
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
                    state_file=str(state_file),
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
        on_second(len(chosen))
    simulation.close()


def main() -> None:
    """Run the episode that is pickled in standard input. For processes that must not share anything with their parent,
    such as a worker of Ray with its threads."""
    die_with_parent(os.getppid())
    run_episode(pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    run_main(main)
