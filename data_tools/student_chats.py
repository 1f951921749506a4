"""Let a student run the signals, and write its answers as chats for SFT.

Example:
    python data_tools/student_chats.py --scenario mine.sumocfg --student student.json --out data/mine/student_chats

The answers of a student (scripts/fit_student.py) take no replays, so a model can learn from far more of them than there
are labels. The student runs the signals most of the time; other rules and random answers lead to states that a model
meets after faults. Each chat has a state's prompt and the student's answer.

Writes OUT/sft_train.parquet and OUT/sft_val.parquet, with the column of data_tools/json_to_parquet.py. The first is of
training demand, the second of validation demand.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import multiprocessing
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_tools.json_to_parquet import SFT_SCHEMA, sft_row
from tsc.controllers.opening import DECIDES, opened
from tsc.controllers.signal_plans import plan_signals
from tsc.episodes.episode import run_episode
from tsc.errors import ConfigError, ScenarioError, run_main
from tsc.files import write_atomically
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import OWN_PROMPT, PROMPT_HELP, prompt_maker
from tsc.junction.signal_control import SignalControl, skipped_lines
from tsc.processes import each_in_a_process
from tsc.rules.controller import Controller
from tsc.rules.random_choice import Random
from tsc.rules.student import Student, StudentFile, load_student
from tsc.rules.tail import tail_controller
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.scenario import Split
from tsc.scenarios.traffic_scenario import TrafficScenario

# The share of time under each. Every BLOCK_S, a new one is drawn for the whole net.
SHARES = {"student": 0.6, "gap_out": 0.1, "max_pressure": 0.1, "longest_queue": 0.1, "random": 0.1}
BLOCK_S = 200
# At least so many training episodes share the chats, so that their demand differs. More run while chats are missing.
MIN_EPISODES, MAX_EPISODES = 8, 100
# Validation chats for each training chat.
VAL_FRACTION = 0.05

Chat = dict[str, Any]


class Mixture:
    """A controller that lets one of SHARES decide at a time."""

    def __init__(self, student: Student, seed: int) -> None:
        self._controllers: dict[str, Controller] = {
            name: tail_controller(name) for name in SHARES if name not in ("student", "random")
        }
        self._controllers |= {"student": student, "random": Random(seed)}
        self._draw = random.Random(f"chats/{seed}")
        self._block = -1
        self._name = ""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        block = int(control.simulation.time_s) // BLOCK_S
        if block != self._block:
            self._block = block
            (self._name,) = self._draw.choices(list(SHARES), weights=list(SHARES.values()))
        return self._controllers[self._name].decide(control, junction_ids)


@dataclass(frozen=True, kw_only=True)
class Hour:
    """An episode to run. number: its place among all. max_chats: at random, so many of its states become chats."""

    number: int
    scenario: TrafficScenario
    seed: int
    student: StudentFile
    prompt: str
    max_chats: int


def chats_of(hour: Hour) -> tuple[int, list[Chat]]:
    """The number of the episode and its chats, in the order of time. Needs a process of its own."""
    student, messages = Student(hour.student), prompt_maker(hour.prompt)
    chats: list[Chat] = []

    def note(control: SignalControl, decisions: Mapping[str, Decision]) -> None:
        for name in decisions:
            observation = observe(control, name)
            chats.append(sft_row(messages(observation), student.decision(observation)))

    scenario = hour.scenario
    with tempfile.TemporaryDirectory(prefix="tsc-chats-") as folder:
        files = scenario.files(hour.seed, demand_file=Path(folder, "demand.rou.xml"))
        planned = plan_signals(DECIDES, files, scenario.signals, scenario.end_s, Path(folder))
        run_episode(
            planned.files,
            end_s=scenario.end_s,
            settings=planned.settings(scenario.signals),
            controller=Mixture(student, hour.seed),
            on_round=note,
        )
    draw = random.Random(f"chosen chats/{scenario.name}/{hour.seed}")
    chosen = sorted(draw.sample(range(len(chats)), min(hour.max_chats, len(chats))))
    return hour.number, [chats[each] for each in chosen]


def make_chats(
    scenarios: Sequence[TrafficScenario],
    split: Split,
    num_chats: int,
    student: StudentFile,
    prompt: str,
    *,
    min_episodes: int,
    workers: int,
) -> tuple[list[Chat], int]:
    """num_chats of them, and the number of their episodes. Fewer chats if MAX_EPISODES of each scenario, or all that
    its seeds allow, do not have so many. The number of workers changes nothing but the time."""
    max_chats = -(-num_chats // max(min_episodes, len(scenarios)))
    hours = (
        Hour(
            number=number,
            scenario=scenario,
            seed=seed,
            student=student,
            prompt=prompt,
            max_chats=max_chats,
        )
        for number, (scenario, seed) in enumerate(_in_turn(scenarios, split))
    )
    chats: list[Chat] = []
    num_episodes = 0
    with tqdm(total=num_chats, unit=" chats", desc=split, disable=None) as bar:
        while len(chats) < num_chats and (batch := list(itertools.islice(hours, workers))):
            of_hours = dict(each_in_a_process(chats_of, batch, workers))
            for hour in batch:
                if len(chats) < num_chats:
                    chats += of_hours[hour.number]
                    num_episodes += 1
            bar.update(min(len(chats), num_chats) - bar.n)
    return chats[:num_chats], num_episodes


def _in_turn(scenarios: Sequence[TrafficScenario], split: Split) -> Iterator[tuple[TrafficScenario, int]]:
    """The first episode of each scenario, then the second of each, and so on: scenario and seed."""
    for episode in range(MAX_EPISODES):
        for scenario in scenarios:
            try:
                yield scenario, scenario.episode_seed(split, episode)
            except ScenarioError:  # it has no seeds for more
                continue


def write_chats(chats: list[Chat], file: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(chats, schema=SFT_SCHEMA), buffer, compression="zstd")
    write_atomically(file, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenario", nargs="+", required=True, metavar="WORD", help=f"{WORDS_HELP}; several share the chats"
    )
    parser.add_argument("--student", type=Path, required=True, metavar="FILE", help="of scripts/fit_student.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the two files go")
    parser.add_argument(
        "--chats", type=at_least(1), default=20_000, metavar="N", help="of training demand (default: %(default)s)"
    )
    parser.add_argument("--prompt", default=OWN_PROMPT, metavar="NAME", help=f"what makes the prompts: {PROMPT_HELP}")
    parser.add_argument(
        "--workers", type=at_least(1), default=multiprocessing.cpu_count(), help="processes (default: cores)"
    )
    add_scenario_options(parser, source="the scenario's own")
    arguments = parser.parse_args()
    student = load_student(arguments.student)
    prompt_maker(arguments.prompt)
    with tempfile.TemporaryDirectory(prefix="tsc-chats-") as name:
        scenarios = traffic_scenarios(arguments.scenario, Path(name), settings_of(arguments))
        for scenario in scenarios:
            scenario.prepare()
            for line in skipped_lines(opened(scenario, Path(name, "opened")).skipped):
                print(line)
        make = partial(make_chats, scenarios, student=student, prompt=arguments.prompt, workers=arguments.workers)
        val = make("validation", math.ceil(VAL_FRACTION * arguments.chats), min_episodes=1)
        train = make("train", arguments.chats, min_episodes=MIN_EPISODES)
    if not train[0]:
        raise ConfigError(
            "no green was ever to be decided about: give a scenario whose greens have room to be extended"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    # whoever finds the last file also finds the first
    for (chats, num_episodes), file_name in ((val, "sft_val.parquet"), (train, "sft_train.parquet")):
        write_chats(chats, arguments.out / file_name)
        says_yes = np.mean([chat["messages"][-1]["content"] == Decision.YES.answer for chat in chats])
        number = f"{len(chats):,} chats of {num_episodes} episode(s)"
        print(f"{arguments.out / file_name}: {number}, {says_yes:.0%} of them yes")


if __name__ == "__main__":
    run_main(main)
