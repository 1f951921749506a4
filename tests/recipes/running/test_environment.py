"""What a training's trackers are told by their environment."""

from pathlib import Path

import pytest

from recipes.running.environment import log_environment


def test_a_resumed_training_keeps_its_run_in_wandb_and_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_TAGS", "my paper")
    first, again = (
        log_environment(tmp_path, "demo-grpo", "auto", group="demo", tags=["grpo", "tiny", "cpu"]) for _ in range(2)
    )
    assert first["WANDB_RUN_ID"].startswith("demo-grpo-")
    assert {key: first[key] for key in first if "FILE" not in key} == {
        key: again[key] for key in again if "FILE" not in key
    }
    assert (first["WANDB_MODE"], first["WANDB_RESUME"]) == ("offline", "allow")
    assert (first["WANDB_RUN_GROUP"], first["WANDB_JOB_TYPE"]) == ("demo", "grpo")
    assert first["WANDB_TAGS"] == "my paper"


def test_without_wandb_there_is_no_setting_of_it(tmp_path: Path) -> None:
    found = log_environment(tmp_path, "demo-grpo", "off", group="demo", tags=["grpo"])
    assert not [name for name in found if name.startswith("WANDB")]
