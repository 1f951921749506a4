"""A policy exported to plain SUMO, as a user does it."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest

from tests.hand_made_student import write_longest_queue_student


def export(repo_root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, repo_root / "scripts/export_program.py", *options]
    return subprocess.run(list(map(str, program)), capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def exported(
    repo_root: Path, short_scenario: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    folder = tmp_path_factory.mktemp("program")
    student, out = write_longest_queue_student(folder / "student.json"), folder / "program.add.xml"
    done = export(repo_root, "--scenario", short_scenario, "--student", student, "--out", out, "--episodes", "3")
    return done, student, out


def test_the_rules_answer_mostly_as_the_student(
    exported: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    done, _, out = exported
    assert done.returncode == 0, done.stderr
    found = re.search(r"the rules give (.+)% of the student's answers on a validation episode", done.stdout)
    assert found is not None and float(found[1]) > 70
    assert done.stdout.endswith(f"program: {out}\n")
    (program,) = ElementTree.parse(out).getroot().findall("tlLogic")
    assert program.get("type") == "actuated" and len(program.findall("condition")) == 8


def test_an_evaluation_runs_the_program_beside_the_student(
    repo_root: Path, short_scenario: Path, exported: tuple[subprocess.CompletedProcess[str], Path, Path], tmp_path: Path
) -> None:
    _, student, program = exported
    command = [sys.executable, repo_root / "scripts/evaluate.py", "--scenarios", short_scenario, "--seeds", "2"]
    command += ["--controllers", f"student:copy={student}", f"program:exported={program}", "static"]
    command += ["--reference", "static", "--warm-up", "0", "--workers", "2", "--out", tmp_path]
    subprocess.run(list(map(str, command)), check=True, timeout=280, capture_output=True)
    summary = pd.read_csv(tmp_path / "summary.csv")
    queues = summary[summary["metric"] == "mean_queue_veh"].set_index("controller")["mean"]
    assert queues["exported"] < queues["static"]
    assert queues["exported"] == pytest.approx(queues["copy"], rel=0.3)


def test_the_same_command_gives_the_same_bytes(
    repo_root: Path, short_scenario: Path, exported: tuple[subprocess.CompletedProcess[str], Path, Path], tmp_path: Path
) -> None:
    _, student, out = exported
    again = tmp_path / "again.add.xml"
    export(repo_root, "--scenario", short_scenario, "--student", student, "--out", again, "--episodes", "3")
    assert again.read_bytes() == out.read_bytes()


def test_a_family_and_a_missing_student_are_refused(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.add.xml"
    done = export(repo_root, "--scenario", short_scenario, "--student", tmp_path / "none.json", "--out", out)
    assert done.returncode != 0 and "cannot read the student" in done.stderr
    student = write_longest_queue_student(tmp_path / "student.json")
    family = repo_root / "configs/scenarios/family_train.yaml"
    done = export(repo_root, "--scenario", family, "--student", student, "--out", out)
    assert done.returncode != 0 and "is a family: name one scenario" in done.stderr
    assert not out.exists()
