"""Objects of JSON files that are read in parts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_tools import json_objects
from data_tools.json_objects import Fault, read_objects

OBJECTS = [{"number": number, "text": "ü\n]," * number} for number in range(30)]


def zstd_in_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is smaller than most objects."""
    monkeypatch.setattr(json_objects, "_PART_CHARS", 7)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd_in_frames])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_objects_of_an_array_come_back(tmp_path: Path, pack: Any, indent: int | None) -> None:
    path = tmp_path / "dataset"
    path.write_bytes(pack(json.dumps(OBJECTS, indent=indent, ensure_ascii=False).encode()))
    assert list(read_objects(path)) == list(enumerate(OBJECTS))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd_in_frames])
def test_the_objects_of_lines_come_back(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "dataset"
    path.write_bytes(pack("\n".join(map(json.dumps, OBJECTS)).encode()))
    assert list(read_objects(path)) == list(enumerate(OBJECTS))


@pytest.mark.usefixtures("small_parts")
def test_numbers_are_not_cut_where_a_part_ends(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    path.write_text("[ 123456789, 12345678901234567890 ,1.5e10,null]")
    assert [value for _, value in read_objects(path)] == [123456789, 12345678901234567890, 1.5e10, None]  # type: ignore[misc]


@pytest.mark.usefixtures("small_parts")
def test_a_fault_far_into_the_array_has_its_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    path.write_text("[\n" + ",\n".join(map(json.dumps, OBJECTS)) + ',\n  {"number": nothing}\n]')
    *found, fault = read_objects(path)
    assert len(found) == 30 and isinstance(fault, Fault)
    assert str(fault).startswith(f"{path}:32:14: broken JSON array: Expecting value")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_file_that_was_not_written_to_its_end_is_a_fault(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "dataset"
    lines = [json.dumps({"number": number, "square": number**9}) for number in range(5000)]
    whole = pack("\n".join(lines).encode())
    path.write_bytes(whole[: len(whole) // 2])
    *_, fault = read_objects(path)
    assert isinstance(fault, Fault) and str(path) in str(fault)


def test_an_empty_compressed_file_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json.gz"
    path.touch()
    (fault,) = read_objects(path)
    assert isinstance(fault, Fault) and "is damaged (it is empty)" in str(fault)


def test_a_line_without_end_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_objects, "_MAX_OBJECT_CHARS", 1000)
    path = tmp_path / "dataset.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"number": 1}\n' + b"1" * 100_000))
    first, fault = read_objects(path)
    assert first == (0, {"number": 1})
    assert isinstance(fault, Fault) and "a line has no end" in str(fault)
