"""The search for reward settings as a user runs it: what it writes, that it continues, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.calibrate_reward import Candidate, best_of_horizons, longest_of_the_best
from reward.settings import load_settings
from tsc.controllers.registry import CLASSICAL
from tsc.cost.outcome import TAILS, OutcomeSettings, load_outcome_settings


def run(repo_root: Path, scenario: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repo_root / "data_tools/calibrate_reward.py"), "--scenario", str(scenario)]
    command += ["--out", str(out), "--seeds", "1", "--workers", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def calibrated(repo_root: Path, short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder, and what was printed."""
    out = tmp_path_factory.mktemp("calibrated")
    done = run(repo_root, short_scenario, out, "--duration", "60")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def delays_s(calibrated: tuple[Path, str]) -> dict[str, float]:
    """By the name of the candidate."""
    records: list[dict[str, Any]] = [json.loads(line) for line in (calibrated[0] / "calibration.jsonl").open()]
    return {record["candidate"]: record["delay_s"] for record in records}


def name_of(settings: OutcomeSettings) -> str:
    step = f" every {settings.tail_step_s} s" if settings.tail_step_s else ""
    return f"{settings.tail}{step}, {settings.horizon_s} s, {settings.measure}, {settings.scope}"


def test_the_settings_are_those_of_the_best_lookahead(calibrated: tuple[Path, str], delays_s: dict[str, float]) -> None:
    chosen = load_outcome_settings(calibrated[0] / "reward.yaml", "four_way")
    lookahead = {name: delay_s for name, delay_s in delays_s.items() if "," in name}
    classical = min(delays_s[name] for name in CLASSICAL)
    if min(lookahead.values()) < classical:
        assert lookahead[name_of(chosen)] < min(classical, 1.02 * min(lookahead.values()))
    else:
        assert chosen.horizon_s == 400
        assert "No lookahead beats" in calibrated[1]


def lookahead(tail: str, horizon_s: int) -> Candidate:
    return Candidate(name="", step_s=5, settings=OutcomeSettings(tail=tail, horizon_s=horizon_s))


def test_two_horizons_go_on_and_of_a_tie_the_longer_is_taken() -> None:
    short, other, long, longest = (
        lookahead("static", 90), lookahead("gap_out", 90), lookahead("static", 180), lookahead("static", 400),
    )  # fmt: skip
    assert best_of_horizons({short: 20.0, other: 20.1, long: 20.2, longest: 20.3}) == [short, long]
    choose = longest_of_the_best(below_s=25)
    assert choose({short: 20.0, long: 20.3, longest: 20.5}) == [long]
    assert choose({short: 20.0, long: 20.5}) == [short]
    # settings that do not beat the best classical controller are not taken, even if they tie with the best
    assert longest_of_the_best(below_s=20.2)({short: 20.0, long: 20.3}) == [short]
    assert longest_of_the_best(below_s=19.0)({short: 20.0, long: 20.3}) == [short]


def test_every_tail_runs_alone_at_decision_points_and_every_second(delays_s: dict[str, float]) -> None:
    for tail in TAILS:
        for step in ("5", "1"):
            assert f"{tail} every {step} s" in delays_s
    # at its decision points, a tail alone is the controller of that name
    for name in ("gap_out", "max_pressure", "longest_queue"):
        assert delays_s[name] == delays_s[f"{name} every 5 s"]


def test_the_file_is_for_one_scenario_and_has_the_tables(calibrated: tuple[Path, str]) -> None:
    path = calibrated[0] / "reward.yaml"
    assert load_settings(path).outcome_settings("another") == OutcomeSettings()
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comment[0].startswith("# Made by: ")
    assert "data_tools/calibrate_reward.py --scenario" in comment[0]
    for line in calibrated[1].splitlines():
        if "lookahead" in line and "ratio" in line:
            assert f"# {line}" in comment


def test_a_second_call_runs_nothing_and_writes_the_same(
    repo_root: Path, short_scenario: Path, calibrated: tuple[Path, str]
) -> None:
    out, printed = calibrated
    before = {name: (out / name).read_bytes() for name in ("reward.yaml", "calibration.jsonl")}
    done = run(repo_root, short_scenario, out, "--duration", "60")
    assert done.stdout == printed
    assert {name: (out / name).read_bytes() for name in before} == before


def test_when_the_time_is_over_the_best_so_far_is_taken(
    repo_root: Path, short_scenario: Path, calibrated: tuple[Path, str], tmp_path: Path
) -> None:
    stored = (calibrated[0] / "calibration.jsonl").read_text().splitlines(keepends=True)
    own = tmp_path / "calibration.jsonl"
    own.write_text("".join(line for line in stored if not any(f", {each} s, " in line for each in (180, 400))))
    done = run(repo_root, short_scenario, tmp_path, "--duration", "60", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert not any(", 400 s, " in line for line in own.read_text().splitlines())
    text = (tmp_path / "reward.yaml").read_text()
    assert text.count("left out") == 4  # two tails, 180 and 400 s
    assert "#   left out  " in text
    assert "(no time for 4 more)" in done.stdout
    assert load_outcome_settings(tmp_path / "reward.yaml", "four_way").horizon_s <= 90
    # a call with time goes on from there
    done = run(repo_root, short_scenario, tmp_path, "--duration", "60")
    assert done.stdout == calibrated[1].replace(str(calibrated[0]), str(tmp_path))
    assert "left out" not in (tmp_path / "reward.yaml").read_text()


def test_the_rest_of_a_reward_file_is_kept(
    repo_root: Path, short_scenario: Path, calibrated: tuple[Path, str], tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("normalisation: sign\nscenarios: {other: {horizon_s: 30}}\n")
    (tmp_path / "calibration.jsonl").write_bytes((calibrated[0] / "calibration.jsonl").read_bytes())
    done = run(repo_root, short_scenario, tmp_path, "--duration", "60", "--reward", str(own))
    assert done.returncode == 0, done.stderr
    settings = load_settings(tmp_path / "reward.yaml")
    assert settings.normalisation == "sign"
    assert settings.outcome_settings("other").horizon_s == 30
    chosen = load_outcome_settings(calibrated[0] / "reward.yaml", "four_way")
    assert settings.outcome_settings("four_way") == chosen


def test_large_networks_can_be_left_out(repo_root: Path, tmp_path: Path) -> None:
    grid = repo_root / "configs/scenarios/grid.yaml"
    done = run(repo_root, grid, tmp_path, "--max-signals", "4")
    assert done.returncode == 0, done.stderr
    assert "grid has 9 signals, which takes long: left out" in done.stdout
    assert load_settings(tmp_path / "reward.yaml").scenarios == {}


def test_without_a_vehicle_nothing_can_be_compared(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    done = run(repo_root, short_scenario, tmp_path, "--duration", "1")
    assert done.returncode == 2
    assert "no vehicle is delayed from 0 to 1 s" in done.stderr
    assert not (tmp_path / "reward.yaml").exists()
