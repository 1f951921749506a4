"""Which trainings a folder has, and what became of each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.monitor.run_folder import trainings_in
from tests.recipes.monitor.made_runs import lock, make_run, record
from tsc.files import folder_lock


@pytest.mark.parametrize("state", ["running", "finished", "crashed", "stopped"])
def test_a_training_is_in_the_state_that_its_files_show(tmp_path: Path, state: str) -> None:
    make_run(tmp_path, "mine", [record(1)], state=state)
    [training] = trainings_in(tmp_path)
    assert (training.name, training.state()) == ("grpo/mine", state)
    assert training.record()["steps"] == 25


def test_a_training_runs_while_its_launch_holds_the_lock(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="stopped")
    [training] = trainings_in(tmp_path)
    with folder_lock(folder, "GRPO"):
        assert training.state() == "running"
    assert training.state() == "stopped"


def test_a_killed_launch_does_not_run_although_its_lock_file_is_there(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="crashed")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock(folder, dead.pid)
    [training] = trainings_in(tmp_path)
    assert training.state() == "crashed"
    assert training.errors() == ["ReplayError: state 17 of junction 'C' is gone"]


def test_a_training_that_somebody_ended_did_not_crash(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="crashed")
    with (folder / "train.log").open("a") as log:
        log.write("\nthe launch was stopped by SIGTERM\n")
    [training] = trainings_in(tmp_path)
    assert training.state() == "stopped"


def test_a_step_that_takes_long_says_what_it_waits_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="running")
    [training] = trainings_in(tmp_path)
    assert training.awaited() is None
    with (folder / "train.log").open("a") as log:
        log.write("\x1b[36m(TaskRunner pid=7)\x1b[0m waiting for the answers to 3 of 32 prompts\n")
    assert training.awaited() == "waiting for the answers to 3 of 32 prompts"


def test_a_finished_training_that_goes_on_runs(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="finished")
    os.utime(folder / "exported_step", (0, 0))
    lock(folder, os.getpid())
    [training] = trainings_in(tmp_path)
    assert training.state() == "running"


def test_later_rounds_are_runs_of_their_own_and_share_the_lock(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", [record(1)], state="running")
    (folder / "round2" / "metrics").mkdir(parents=True)
    found = {training.name: training.state() for training in trainings_in(tmp_path)}
    assert found == {"grpo/mine": "running", "grpo/mine-round2": "running"}


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    folder = make_run(runs, "mine", [record(1)], state="finished")
    secret = make_run(outside, "secret", [record(1)], state="finished")
    (runs / "linked").symlink_to(outside / "secret")
    (runs / "half").mkdir()
    (runs / "half" / "grpo").symlink_to(secret)
    for name in ("train.log", "samples.jsonl", "run.json", "metrics/2.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret / "train.log")
    [training] = trainings_in(runs)
    assert training.name == "grpo/mine"
    assert [file.name for file in training.metrics_files] == ["20260102T030405.jsonl"]
    assert training.samples_file is None
    assert (training.errors(), training.record()) == ([], {})
