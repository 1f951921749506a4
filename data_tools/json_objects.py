"""Reads the objects of JSON arrays and JSON Lines one by one, also from files that gzip or zstd compressed.

Memory does not grow with the file: a part of it is read at a time.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

_PART_CHARS = 1 << 20
# no object is larger; a broken one would otherwise be sought in the whole rest of the file
_MAX_OBJECT_CHARS = 1 << 28
# Of packed data at a time: zstd can turn it into 32,000 times as much.
_PACKED_BYTES = 1 << 12
PACKED_SUFFIXES = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass
class Fault:
    """message: without the place. count: how many samples have it. A fault of a file that they share is one fault."""

    file: Path
    message: str
    index: int | None = None
    sample_id: str | None = None
    count: int = 1

    def __str__(self) -> str:
        where = str(self.file)
        if self.index is not None:
            where += f": sample {self.index}"
            if self.sample_id:
                where += f" ({self.sample_id})"
            if self.count > 1:
                where += f" and {self.count - 1:,} more"
        return f"{where}: {self.message}"


def read_objects(path: Path) -> Iterator[tuple[int, object] | Fault]:
    """The objects of a JSON array or of JSON Lines, each with its index, and a Fault for each place that is not JSON.

    After a broken line, reading continues with the next line. A broken array ends there.
    """
    try:
        with _opened(path) as file:
            head = file.read(1)
            while head.isspace():
                head = file.read(1)
        with _opened(path) as file:
            yield from _read_array(path, file) if head == "[" else _read_lines(path, file)
    except UnicodeDecodeError as error:
        yield Fault(path, f"is not UTF-8 text: {error.reason}; what follows was not read")
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        yield Fault(path, f"is damaged ({error}); what follows was not read")
    except OSError as error:
        yield Fault(path, f"cannot be read: {error.strerror}")


class _ZstdFrames(io.RawIOBase):
    """What the frames of a file hold. zstandard's own reader takes a frame that is cut off for the end of the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_in_frame = False
        self._ready, self._position = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._position == len(self._ready):
            packed = (self._frame.unused_data if self._frame.eof else b"") or self._file.read(_PACKED_BYTES)
            if not packed:
                if self._is_in_frame:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._position = self._frame.decompress(packed), 0
            self._is_in_frame = not self._frame.eof
        part = self._ready[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a file, which may be compressed."""
    with path.open("rb") as raw:
        magic = raw.read(4)
        if not magic and path.suffix in PACKED_SUFFIXES:
            raise EOFError("it is empty")
        raw.seek(0)
        data: IO[bytes] = raw
        if magic.startswith(_GZIP):
            data = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
        elif magic == _ZSTD:
            data = io.BufferedReader(_ZstdFrames(raw))
        with io.TextIOWrapper(data, encoding="utf-8-sig") as text:
            yield text


def _read_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, object] | Fault]:
    index = 0
    for number, line in enumerate(iter(lambda: file.readline(_MAX_OBJECT_CHARS), ""), start=1):
        if len(line) == _MAX_OBJECT_CHARS:
            yield Fault(Path(f"{path}:{number}"), "a line has no end; what follows was not read")
            return
        if not line.strip():
            continue
        try:
            yield index, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            column = getattr(error, "colno", 1)
            yield Fault(Path(f"{path}:{number}:{column}"), f"broken JSON line: {getattr(error, 'msg', error)}")
        index += 1


class _Part:
    """The part of a text that is in memory. `position` is where it is read."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._is_last = False
        # where `text` begins
        self._line, self._column = 1, 1
        self.text = ""
        self.position = 0
        self.grow()

    def grow(self) -> bool:
        """Read on, at least as much again as is left. Returns whether there was anything."""
        left = len(self.text) - self.position
        more = "" if self._is_last else self._file.read(max(_PART_CHARS, left))
        if not more:
            self._is_last = True
            return False
        self._line, self._column = self._place(self.position)
        self.text, self.position = self.text[self.position :] + more, 0
        return True

    def skip_space(self) -> str:
        """Move on to what is not space. Returns its first character, "" at the end of the file."""
        while True:
            self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # matches "" too
            if self.position < len(self.text) or not self.grow():
                return self.text[self.position : self.position + 1]

    def value(self) -> object:
        """The next value. Raises JSONDecodeError or RecursionError."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                # a number at the end of the part may go on
                if end < len(self.text) or not self.grow():
                    self.position = end
                    return value
            except json.JSONDecodeError:
                if len(self.text) - self.position > _MAX_OBJECT_CHARS or not self.grow():
                    raise

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column, from 1."""
        lines = self.text.count("\n", 0, position)
        if not lines:
            return self._line, self._column + position
        return self._line + lines, position - self.text.rindex("\n", 0, position)

    def broken(self, path: Path, message: str, position: int) -> Fault:
        line, column = self._place(min(position, len(self.text)))
        return Fault(Path(f"{path}:{line}:{column}"), f"broken JSON array: {message}; what follows was not read")


_DECODER = json.JSONDecoder()


def _read_array(path: Path, file: IO[str]) -> Iterator[tuple[int, object] | Fault]:
    part = _Part(file)
    part.skip_space()
    part.position += 1  # the bracket
    if part.skip_space() == "]":
        return
    index = 0
    while True:
        try:
            value = part.value()
        except (json.JSONDecodeError, RecursionError) as error:
            yield part.broken(path, getattr(error, "msg", str(error)), getattr(error, "pos", part.position))
            return
        yield index, value
        index += 1
        mark = part.skip_space()
        if mark == "]":
            part.position += 1
            if part.skip_space():
                yield part.broken(path, "Extra data", part.position)
            return
        if mark != ",":
            yield part.broken(path, "Expecting ',' delimiter", part.position)
            return
        part.position += 1
        part.skip_space()
