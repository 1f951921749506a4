"""The study of horizons, tails, measures and scopes: what it compares, its arithmetic, and how it continues."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from horizon_study import (
    DEFAULT,
    Result,
    json_rows,
    main,
    over_scenarios,
    results_of,
    scenario_word,
    scenarios_to_compare,
    settings_to_compare,
    squeezed,
    tables,
)
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError, TscError
from tsc.scenarios.drawn_scenario import DrawnScenario
from tsc.scenarios.scenario import load_scenario


def episode(scenario: str, controller: str, seed: int, queue_veh: float) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "controller": controller,
        "seed": seed,
        "duration_s": 600,
        "mean_queue_veh": queue_veh,
        "waiting_time_s": 10 * queue_veh,
        "tie_share": 0.1,
        "yes_share": 0.4,
    }


def results() -> list[Result]:
    queues = {
        "four_way": {DEFAULT: [2.0, 4.0, 3.0], "horizon_s=5": [3.0, 6.0, 4.5], "tail=gap_out": [2.2, 3.6, 3.0]},
        "grid": {DEFAULT: [10.0, 20.0, 10.0], "horizon_s=5": [16.0, 30.0, 14.0], "tail=gap_out": [10.0, 20.0, 10.0]},
    }
    episodes = [
        episode(scenario, name, seed, queue)
        for scenario, of_name in queues.items()
        for name, of_seed in of_name.items()
        for seed, queue in enumerate(of_seed)
    ]
    return results_of(episodes, [DEFAULT, "horizon_s=5", "tail=gap_out"])


def test_one_factor_changes_at_a_time() -> None:
    default = OutcomeSettings()
    settings = settings_to_compare(default)
    assert settings.pop(DEFAULT) == default
    assert len(settings) == 7 + 2 + 3 + 2
    for setting in settings.values():
        changed = [key for key, value in setting.as_dict().items() if value != default.as_dict()[key]]
        assert len(changed) == 1


def test_a_short_episode_has_all_periods_of_the_demand(repo_root: Path) -> None:
    scenario = load_scenario(repo_root / "configs/scenarios/four_way.yaml")
    short = squeezed(scenario, 600)
    assert short.duration_s == 600
    assert short.demand.period_begin_s == [0, 150, 300, 450]
    assert short.demand.entries_veh_per_h == scenario.demand.entries_veh_per_h
    assert squeezed(scenario, 3600) == scenario


def test_a_scenario_of_sumos_own_files_is_cut_and_one_of_ours_is_squeezed(tmp_path: Path) -> None:
    ours, theirs = scenarios_to_compare([scenario_word("four_way"), "resco:cologne1"], [600, 900], tmp_path)
    assert (ours.begin_s, ours.end_s, theirs.begin_s, theirs.end_s) == (0, 600, 25200, 26100)
    assert isinstance(ours, DrawnScenario) and ours.scenario.demand.period_begin_s == [0, 150, 300, 450]
    with pytest.raises(ConfigError, match="a family file stands for many"):
        scenarios_to_compare([scenario_word("family_unseen")], [600], tmp_path)


def test_differences_are_paired_over_seeds() -> None:
    found = {(result.scenario, result.name): result for result in results()}
    five = found["four_way", "horizon_s=5"]
    assert five.relative_differences == pytest.approx((0.5, 0.5, 0.5))
    assert five.difference_veh[0] == pytest.approx(1.5)
    # The differences 1, 2 and 1.5 have half the spread of the queues themselves.
    assert (five.difference_veh[2] - five.difference_veh[1]) / 2 == pytest.approx(
        stats.t.ppf(0.975, 2) * 0.5 / math.sqrt(3)
    )


def test_scenarios_weigh_alike_and_the_interval_is_that_of_their_mean() -> None:
    # four_way has 0.5 without spread. grid has 0.6, 0.5 and 0.4, with a standard error of 0.1 / sqrt(3).
    mean, low, high = over_scenarios(results(), "horizon_s=5")
    assert mean == pytest.approx(0.5)
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3) / 2
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))
    wider = over_scenarios(results(), "horizon_s=5", level=0.99)
    assert wider[2] - 0.5 == pytest.approx(half * stats.t.ppf(0.995, 2) / stats.t.ppf(0.975, 2))


def test_the_table_says_what_lies_beyond_the_spread() -> None:
    text = tables(results(), [DEFAULT, "horizon_s=5", "tail=gap_out"], OutcomeSettings())
    assert "**four_way**, 3 seeds of 600 s" in text
    assert "| horizon_s=5 | 10.0 | 40 | 4.50 ± 3.73 | +1.50 ± 1.24 | 45.0 ± 37.3 |" in text
    assert "- longer queues than the default, beyond the spread: horizon_s=5" in text
    assert "- shorter queues than the default, beyond the spread: none" in text
    assert "- within the spread: tail=gap_out" in text


def test_rows_have_the_default_beside_them() -> None:
    row = next(row for row in json_rows(results()) if row["name"] == "four_way: mean queue, horizon_s=5")
    assert (row["value"], row["beside"], row["unit"]) == (4.5, 3.0, "veh")
    assert row["ratio"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1", "2"], "--seeds has 2 values for 1 scenarios"),
        (["--seeds", "0"], "--seeds is 0: choose at least 1"),
        (["--duration", "0"], "--duration is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--scenarios", "nowhere"], "nowhere.yaml"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    command = ["horizon_study.py", "--scenarios", "four_way", "--out", str(tmp_path), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(TscError, match=re.escape(message)):
        main()
    assert not (tmp_path / "episodes.jsonl").exists()


# 18 episodes in three runs. They end when they are done, and on a busy machine that takes minutes.
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_interrupted_study_ends_with_the_table_of_an_uninterrupted_one(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    command = [sys.executable, str(repo_root / "scripts/studies/horizon_study.py"), "--scenarios", str(short_scenario)]
    command += ["--seeds", "1", "--duration", "60", "--out", str(out), "--json", str(tmp_path / "rows.json")]

    def run(workers: int) -> str:
        done = subprocess.run([*command, "--workers", str(workers)], capture_output=True, text=True, check=True)
        return done.stdout

    first = run(workers=2)
    table, figure = (out / "horizon_study.md").read_text(), (out / "horizon_study.png").read_bytes()
    assert table.strip() in first
    assert figure.startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 15
    lines = (out / "episodes.jsonl").read_text().splitlines()
    # A kill leaves some episodes, in the order in which they ended, and half a line.
    (out / "episodes.jsonl").write_text("\n".join([*lines[:2:-1], lines[0][:40]]))
    second = run(workers=1)
    assert "12 of 15 episodes are there already" in second
    assert (out / "horizon_study.md").read_text() == table
    assert "15 of 15 episodes are there already" in run(workers=1)
