"""The file that an evaluation resumes from."""

import json
from pathlib import Path

import pytest

from tsc.errors import ConfigError
from tsc.evaluation.episodes_file import EpisodesFile


def _line(fingerprint: str, queue: float = 1.0) -> str:
    return json.dumps({"fingerprint": fingerprint, "mean_queue_veh": queue}) + "\n"


def test_only_wanted_episodes_count_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(_line("a") + _line("b") + _line("a", 2.0))
    file = EpisodesFile(path, {"a", "c"})
    assert file.episodes == [{"fingerprint": "a", "mean_queue_veh": 1.0}]
    file.append({"fingerprint": "c"})
    assert [record["fingerprint"] for record in EpisodesFile(path, {"b", "c"}).episodes] == ["b", "c"]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(_line("a") + _line("b")[:15])
    EpisodesFile(path, {"a", "b"}).append({"fingerprint": "b"})
    assert [record["fingerprint"] for record in EpisodesFile(path, {"a", "b"}).episodes] == ["a", "b"]


@pytest.mark.parametrize("text", ["no json\n" + _line("a"), '{"other": 1}\n', "[1]\n"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="choose another --out"):
        EpisodesFile(path, {"a"})
    assert path.read_text() == text
