"""Archives of saved states: the same bytes come back, plain tools read them, and damage is told."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tsc.errors import StateError
from tsc.replays.state_archive import ARCHIVE_NAME, StateArchiveWriter, is_saved, state_bytes

STATES = {f"t{second:05d}.xml": f"<snapshot {'x' * second} {second}/>\n".encode() * 40 for second in range(40)}


def write_archive(folder: Path) -> Path:
    path = folder / ARCHIVE_NAME
    with StateArchiveWriter(path) as archive:
        for name, state in STATES.items():
            archive.add(name, state)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path)


def test_each_state_comes_back(archive: Path) -> None:
    # in any order
    for name in sorted(STATES, key=hash):
        assert is_saved(archive / name)
        assert state_bytes(archive / name) == STATES[name]


def test_plain_tar_and_zstd_read_it(archive: Path, tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-dc", str(archive)], check=True, capture_output=True).stdout
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-x", "-C", str(tmp_path / "out")], input=packed, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == STATES


def test_the_same_states_give_the_same_bytes_and_they_are_small(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert write_archive(tmp_path / "again").read_bytes() == archive.read_bytes()
    assert archive.stat().st_size < sum(map(len, STATES.values())) / 10


def test_a_state_that_is_not_in_it_is_missing(archive: Path) -> None:
    assert not is_saved(archive / "gone.xml")
    assert not is_saved(archive.parent / "gone.tar.zst/t00001.xml")
    for path in (archive / "gone.xml", archive.parent / "gone.tar.zst/t00001.xml"):
        with pytest.raises(FileNotFoundError):
            state_bytes(path)


def test_a_plain_file_is_a_state_too(tmp_path: Path) -> None:
    (tmp_path / "t1.xml.gz").write_bytes(b"state")
    assert is_saved(tmp_path / "t1.xml.gz")
    assert state_bytes(tmp_path / "t1.xml.gz") == b"state"


@pytest.mark.parametrize("keep", [0, 7, 300, -1, -200])
def test_a_half_written_archive_is_told(archive: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(StateError, match=f"{ARCHIVE_NAME} is not a whole archive .*generate the dataset again"):
        state_bytes(archive / "t00003.xml")


def test_a_changed_byte_is_told(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[100] ^= 255
    archive.write_bytes(data)
    with pytest.raises(StateError, match=f"{ARCHIVE_NAME} is damaged"):
        state_bytes(archive / "t00003.xml")


def test_nothing_appears_if_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StateArchiveWriter(tmp_path / ARCHIVE_NAME) as archive:
        archive.add("t1.xml", b"state")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", [[0, 1, 0, 2**70], [0, 10**9, 0, 1], [0, 1.5, 0, 1], [0, 1], "four", [-1, 1, 0, 1]])
def test_an_index_that_cannot_be_right_is_told(archive: Path, place: object) -> None:
    index = json.dumps({"t00003.xml": place}).encode()
    archive.write_bytes(archive.read_bytes() + index + struct.pack("<Q", len(index)))
    with pytest.raises(StateError, match=f"{ARCHIVE_NAME} is not a whole archive"):
        state_bytes(archive / "t00003.xml")


def test_what_is_not_a_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "file/t1.xml"):
        with pytest.raises(FileNotFoundError):
            state_bytes(path)
