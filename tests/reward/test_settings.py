"""configs/reward.yaml: shipped values, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from reward.settings import DEFAULT_SETTINGS_FILE, RewardSettings, load_settings
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError


def test_the_shipped_file_says_what_the_defaults_say() -> None:
    assert load_settings() == RewardSettings()
    assert load_settings().outcome_settings() == OutcomeSettings()


def test_the_shipped_file_names_every_setting() -> None:
    shown = yaml.safe_load(DEFAULT_SETTINGS_FILE.read_text())
    assert set(shown) == set(RewardSettings.model_fields)
    # the function that replays is for tests and other simulators
    assert set(shown["replay"]) | {"function"} == set(RewardSettings().replay.model_dump())
    assert set(shown["cache"]) == set(RewardSettings().cache.model_dump())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"normalization": "sign"}, "unknown key 'normalization': did you mean 'normalisation'?"),
        ({"replay": {"timeout": 5}}, "unknown key 'replay.timeout': did you mean 'timeout_s'?"),
        ({"normalisation": "absolute"}, "'relative', 'sign' or 'clipped'"),
        (
            {"outcome": {"tail": "maxpressure"}},
            "tail is 'maxpressure': choose one of static, gap_out, max_pressure",
        ),
        ({"outcome": {"horizon_s": 0}}, "horizon_s is 0: choose whole seconds, 1–600"),
        ({"outcome": {"horizon": 30}}, "unknown key 'outcome.horizon': did you mean 'horizon_s'?"),
        ({"audit_fraction": 1.5}, "audit_fraction is 1.5"),
        ({"tie_threshold_veh_s": float("nan")}, "tie_threshold_veh_s is nan"),
        ({"replay": {"workers": 0}}, "replay.workers is 0"),
        ({"cache": {"directory": "runs/cache"}}, "cache.directory is 'runs/cache': choose an absolute path"),
        ({"cache": {"size_limit_mb": -1}}, "cache.size_limit_mb is -1"),
        ({"weights": {"traffic": 0}}, "weights.traffic is 0"),
        ({"format": {"embedded": 0.2}}, "choose exact >= embedded >= invalid"),
        ({"format": {"exact": 3.0}}, "must be below weights.traffic"),
        ({"format": {"invalid": 0.0}}, "set format.invalid to at most -0.95"),
        ({"weights": {"format": 0.0}}, "set weights.format above 0"),
    ],
)
def test_a_wrong_value_is_told_with_its_remedy(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides=overrides)
    assert told in str(caught.value)
    assert "reward.yaml" in str(caught.value)


def test_an_override_of_one_key_keeps_the_rest_of_its_section(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("replay: {workers: 3, retries: 0}\n")
    assert load_settings(path, {"replay": {"retries": 1}}).replay.model_dump() == {
        "workers": 3,
        "timeout_s": 60.0,
        "retries": 1,
        "function": "tsc.replays.replay:replay",
    }


def test_a_scenario_has_what_differs_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("outcome: {horizon_s: 60}\nscenarios: {narrow: {tail: gap_out, tail_step_s: 1}}\n")
    settings = load_settings(path)
    assert settings.outcome_settings("wide") == OutcomeSettings(horizon_s=60)
    assert settings.outcome_settings("narrow") == OutcomeSettings(horizon_s=60, tail="gap_out", tail_step_s=1)
    # an override of what they have in common reaches the scenario
    overridden = load_settings(path, {"outcome": {"measure": "waiting_time_s"}})
    assert overridden.outcome_settings("narrow") == OutcomeSettings(
        horizon_s=60, tail="gap_out", tail_step_s=1, measure="waiting_time_s"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scenarios: {narrow: {tale: gap_out}}", "unknown key 'scenarios.narrow.tale': did you mean 'tail'?"),
        ("scenarios: {narrow: {tail: gapout}}", "tail is 'gapout': choose one of static, gap_out"),
        ("scenarios: {narrow: {tail_step_s: 0}}", "tail_step_s is 0: choose a divisor of green_extension_s"),
        ("scenarios: {narrow: gap_out}", "scenarios.narrow"),
        ("scenarios: [narrow]", "scenarios"),
    ],
)
def test_a_wrong_scenario_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert told in str(caught.value)
    assert "mine.yaml" in str(caught.value)
