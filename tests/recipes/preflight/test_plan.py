"""What a launcher gets from show_plan: the plan first, then the configuration's check, then whether it may start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recipes.preflight.plan import show_plan
from tests.recipes.preflight.composed import GIVEN
from tsc.errors import ConfigError


def test_a_wrong_configuration_is_found_on_every_launch_and_after_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"trl\.foo is unknown"):
        show_plan("dpo", [*GIVEN["dpo"], "hardware=t4", "+trl.foo=1"], model="qwen2.5-0.5b")
    assert "FITS: at most" in capsys.readouterr().out


def test_a_dry_run_writes_the_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dpo/dry_run"
    assert show_plan("dpo", [*GIVEN["dpo"], "hardware=t4"], model="qwen2.5-0.5b", out=out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"dry run: the configuration is valid, and written to {out}/config.yaml"
    assert yaml.safe_load((out / "config.yaml").read_text())["trl"]["gradient_checkpointing"] is True


def test_a_run_that_does_not_fit_may_start_only_if_its_user_ignores_that(capsys: pytest.CaptureFixture[str]) -> None:
    run = [*GIVEN["dpo"], "hardware=t4"]
    assert not show_plan("dpo", run, model="qwen2.5-7b")
    assert "add to your command:\n  QUANTIZE=4bit bash scripts/train_dpo.sh\n" in capsys.readouterr().out
    assert show_plan("dpo", run, model="qwen2.5-7b", ignore_fit=True)
    assert "FIT=ignore: continuing" in capsys.readouterr().out


def test_an_unknown_profile_is_refused_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"HARDWARE=h1000 is unknown: did you mean 'h100'"):
        show_plan("sft", ["hardware=h1000"], model="tiny")
    assert capsys.readouterr().out == ""
