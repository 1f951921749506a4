"""Which checkpoint a training continues from after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.models.checkpoints import TRACKER, is_complete, latest_step, mend_tracker, remove_older


def write_checkpoint(checkpoints: Path, step: int, *, part: str = "actor", ranks: int = 2) -> Path:
    """A checkpoint with the files of verl."""
    folder = checkpoints / f"global_step_{step}"
    (folder / part).mkdir(parents=True)
    for rank in range(ranks):
        for name in ("model", "optim", "extra_state"):
            torch.save({"weight": torch.ones(3)}, folder / part / f"{name}_world_size_{ranks}_rank_{rank}.pt")
    torch.save({"place": 1}, folder / "data.pt")
    return folder


def test_a_tracker_that_was_cut_off_names_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        write_checkpoint(tmp_path, step)
    half = tmp_path / "global_step_10/actor/optim_world_size_2_rank_1.pt"
    half.write_bytes(half.read_bytes()[:-20])
    (tmp_path / TRACKER).write_text("")  # verl empties it, then writes
    assert latest_step(tmp_path) is None
    assert "names step 6" in (mend_tracker(tmp_path) or "")
    assert latest_step(tmp_path) == 6
    assert mend_tracker(tmp_path) is None


def test_a_tracker_whose_checkpoint_has_gone_names_the_newest_complete_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 8)
    (tmp_path / TRACKER).write_text("4")
    assert "names step 8" in (mend_tracker(tmp_path) or "")
    assert (tmp_path / TRACKER).read_text() == "8"


def test_without_a_complete_checkpoint_the_training_begins_anew(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 1) / "data.pt").unlink()
    (tmp_path / TRACKER).write_text("")
    assert "begins anew" in (mend_tracker(tmp_path) or "")
    assert not (tmp_path / TRACKER).exists()


def test_a_tracker_that_names_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 8)  # complete, but not yet named
    (tmp_path / TRACKER).write_text("4")
    assert mend_tracker(tmp_path) is None
    assert (tmp_path / TRACKER).read_text() == "4"
    assert mend_tracker(tmp_path / "no folder") is None


@pytest.mark.parametrize(
    "lacking", ["data.pt", "actor/model_world_size_2_rank_0.pt", "actor/model_world_size_2_rank_1.pt"]
)
def test_a_checkpoint_that_lacks_a_file_is_not_complete(tmp_path: Path, lacking: str) -> None:
    folder = write_checkpoint(tmp_path, 4)
    assert is_complete(folder)
    (folder / lacking).unlink()
    assert not is_complete(folder)


def test_a_checkpoint_of_the_sft_is_complete_with_its_files_side_by_side(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 4, part=".", ranks=1)
    (folder / "data.pt").rename(folder / "data_0.pt")
    assert is_complete(folder)


def test_the_checkpoint_that_a_resumed_training_began_from_goes(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        (tmp_path / f"global_step_{step}/actor").mkdir(parents=True)
    (tmp_path / TRACKER).write_text("12")
    remove_older(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("global_step_*")) == ["global_step_12"]


def test_checkpoints_elsewhere_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "global_step_4").mkdir()
    remove_older(tmp_path)
    assert (tmp_path / "global_step_4").is_dir()
