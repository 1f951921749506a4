"""Chats of a student that runs the signals, as a user makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.hand_made_student import write_longest_queue_student
from tsc.junction.observation import Observation
from tsc.rules.student import Student, load_student

# a prompt from which the observation can be read again
PLAIN_PROMPT = """
import json

def messages(observation):
    return [{"role": "user", "content": json.dumps(observation.as_dict())}]
"""


def make(repo_root: Path, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    (folder / "plain_prompt.py").write_text(PLAIN_PROMPT)
    return subprocess.run(
        [sys.executable, str(repo_root / "data_tools/student_chats.py"), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def chats_in(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    return [row["messages"] for row in pq.read_table(folder / name).to_pylist()]


@pytest.fixture(scope="module")
def made(repo_root: Path, short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    student = write_longest_queue_student(folder / "student.json")
    options = ("--scenario", short_scenario, "--student", student, "--prompt", "pkg://plain_prompt:messages")
    done = make(repo_root, folder, *options, "--out", folder / "out", "--chats", "80", "--workers", "2")
    assert done.returncode == 0, done.stderr
    # an episode has 20 decisions and more, of which each of eight gives 10
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == [
        f"4 chats of 1 episode(s), {share_of_yes(folder, 'sft_val.parquet'):.0%} of them yes",
        f"80 chats of 8 episode(s), {share_of_yes(folder, 'sft_train.parquet'):.0%} of them yes",
    ]
    return folder


def share_of_yes(folder: Path, name: str) -> float:
    answers = [chat[-1]["content"] for chat in chats_in(folder / "out", name)]
    return answers.count('{"extend": "yes"}') / len(answers)


def test_each_state_has_the_student_s_answer_whoever_decided(made: Path) -> None:
    student = Student(load_student(made / "student.json"))
    for name in ("sft_train.parquet", "sft_val.parquet"):
        chats = chats_in(made / "out", name)
        assert chats
        for prompt, answer in chats:
            observation = Observation.from_dict(json.loads(prompt["content"]))
            assert answer == {"role": "assistant", "content": student.decision(observation).answer}
    assert 0.2 < share_of_yes(made, "sft_train.parquet") < 0.8


def test_the_number_of_workers_changes_nothing(repo_root: Path, short_scenario: Path, made: Path) -> None:
    options = ("--scenario", short_scenario, "--student", made / "student.json", "--chats", "80")
    more = ("--prompt", "pkg://plain_prompt:messages", "--workers", "3", "--out", made / "again")
    assert make(repo_root, made, *options, *more).returncode == 0
    for name in ("sft_train.parquet", "sft_val.parquet"):
        assert (made / "again" / name).read_bytes() == (made / "out" / name).read_bytes()


def test_a_scenario_with_seeds_for_few_episodes_gives_the_chats_that_it_has(
    repo_root: Path, short_scenario: Path, made: Path
) -> None:
    few = made / "few.yaml"
    few.write_text(short_scenario.read_text().replace("validation: 501", "validation: 2").replace("1001", "3"))
    options = ("--scenario", few, "--student", made / "student.json", "--chats", "4000", "--out", made / "fewer")
    done = make(repo_root, made, *options)
    assert done.returncode == 0, done.stderr
    assert all(" chats of 1 episode(s), " in line for line in done.stdout.splitlines())
    assert 10 < len(chats_in(made / "fewer", "sft_train.parquet")) < 60


def test_a_file_that_is_no_student_is_told_before_a_net_is_built(repo_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.json"
    file.write_text("{}")
    done = make(repo_root, tmp_path, "--scenario", "sumo:rilsa1", "--student", file, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: {file} is not a student: make one with scripts/fit_student.py\n"
    assert not (tmp_path / "out").exists()
