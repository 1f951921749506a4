"""Saved states in one file: states.tar.zst, which plain tools read (`tar --zstd -xf`).

The states of an episode resemble each other, so they are compressed together, a few in each zstd frame. Frames are
independent: to read a state is to read one frame. The last frame is one that zstd skips. It holds the index as JSON:
by name, the frame's first byte and length in the file, and the state's first byte and length in the frame. The index
is followed by its own length, in the last 8 bytes of the file. Frames: RFC 8878.

A state in an archive has a path, too: that of the archive, then its name in it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import zstandard

from tsc.errors import StateError
from tsc.replays.saved_state import MAX_STATE_BYTES

ARCHIVE_NAME = "states.tar.zst"

_STATES_OF_FRAME = 16
# A frame that has this much is closed, so that reading a state of a large net does not take long.
_FULL_FRAME_BYTES = 8 << 20
_MAX_FRAME_BYTES = MAX_STATE_BYTES + _FULL_FRAME_BYTES + (1 << 20)
# Higher levels gain little: 2.6 instead of 2.7 kB for a state of four_way, for twice the time.
_LEVEL = 6
# so that a state finds the one before it
_WINDOW_LOG = 24
_SKIPPABLE = 0x184D2A50
_TAR_BLOCK = 512

_Place = tuple[int, int, int, int]


class StateArchiveWriter:
    """Writes an archive, which appears when the `with` block ends without an error. Same states, same bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._index: dict[str, _Place] = {}
        self._frame = io.BytesIO()
        self._in_frame: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> StateArchiveWriter:
        self._file = self._temporary.open("wb")
        return self

    def add(self, name: str, state: bytes) -> None:
        head = tarfile.TarInfo(name)
        head.size = len(state)
        self._frame.write(head.tobuf(tarfile.PAX_FORMAT))
        self._in_frame[name] = (self._frame.tell(), len(state))
        self._frame.write(state)
        self._frame.write(bytes(-len(state) % _TAR_BLOCK))
        if len(self._in_frame) == _STATES_OF_FRAME or self._frame.tell() >= _FULL_FRAME_BYTES:
            self._end_frame()

    def _end_frame(self) -> None:
        data, begin = self._frame.getvalue(), self._file.tell()
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, source_size=len(data), window_log=_WINDOW_LOG, write_checksum=True
        )
        frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
        self._file.write(frame)
        self._index |= {name: (begin, len(frame), *place) for name, place in self._in_frame.items()}
        self._frame, self._in_frame = io.BytesIO(), {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._frame.write(bytes(2 * _TAR_BLOCK))  # the end of a tar file
                self._end_frame()
                index = json.dumps(self._index, separators=(",", ":")).encode()
                length = len(index) + 8
                self._file.write(struct.pack("<II", _SKIPPABLE, length) + index + struct.pack("<Q", len(index)))
                self._file.close()
                self._temporary.replace(self._path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def is_saved(path: Path) -> bool:
    """Whether there is a state at this path: a file, or a state in an archive. Raises StateError for a damaged
    archive."""
    return path.is_file() or (_is_in_archive(path) and path.name in _index_of(path.parent))


def state_bytes(path: Path) -> bytes:
    """The bytes of a saved state: of the file, or of its XML in an archive.

    At most MAX_STATE_BYTES + 1 of a file. Raises FileNotFoundError, and StateError for a damaged archive.
    """
    if not _is_in_archive(path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
        with path.open("rb") as file:
            return file.read(MAX_STATE_BYTES + 1)
    archive = path.parent
    index = _index_of(archive)
    if path.name not in index:
        raise FileNotFoundError(f"{archive} has no state {path.name}")
    frame_begin, frame_length, begin, length = index[path.name]
    return _frame_of(archive, *_version(archive), frame_begin, frame_length)[begin : begin + length]


def lies_in_archive(path: Path) -> bool:
    """Whether the path of a state names an archive and a state in it."""
    return path.parent.name.endswith(".tar.zst")


def _is_in_archive(path: Path) -> bool:
    return lies_in_archive(path) and path.parent.is_file()


def _version(archive: Path) -> tuple[int, int]:
    status = archive.stat()
    return status.st_size, status.st_mtime_ns


def _index_of(archive: Path) -> dict[str, _Place]:
    return _read_index(archive, *_version(archive))


@lru_cache(maxsize=64)
def _read_index(archive: Path, size: int, changed_ns: int) -> dict[str, _Place]:
    try:
        with archive.open("rb") as file:
            file.seek(size - 8)
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= size - 16:
                raise ValueError(f"its index cannot have {length} bytes")
            file.seek(size - 8 - length)
            index = {name: tuple(place) for name, place in json.loads(file.read(length)).items()}
            for place in index.values():
                frame_begin, frame_length, begin, length = place
                if not all(type(number) is int and number >= 0 for number in place):
                    raise ValueError("its index is not one of states")
                if frame_begin + frame_length > size or begin + length > _MAX_FRAME_BYTES:
                    raise ValueError("its index leads out of it")
            return index
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise StateError(f"{archive} is not a whole archive of states ({error}): generate the dataset again") from error


# Neighbours are often read one after the other. A frame has some megabytes.
@lru_cache(maxsize=2)
def _frame_of(archive: Path, size: int, changed_ns: int, begin: int, length: int) -> bytes:
    try:
        with archive.open("rb") as file:
            file.seek(begin)
            data = file.read(length)
        declared = zstandard.frame_content_size(data)
        if not 0 <= declared <= _MAX_FRAME_BYTES:
            raise ValueError(f"it has a frame of {declared} bytes")
        return zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompress(data)
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise StateError(f"{archive} is damaged ({error}): generate the dataset again") from error
