"""What is long in a row, kept on disk until the row is written: its prompt, its ground truth and its sample's id."""

from __future__ import annotations

import io
import json
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from data_tools.prompt_lengths import prompt_tokens

# Text of this data gets 20 times smaller at the lowest level already.
_LEVEL = 1
_BATCH = 1024

Prompt = list[dict[str, str]]


class Texts(NamedTuple):
    """ground_truth: JSON."""

    prompt: Prompt
    ground_truth: str
    sample_id: str


class RowSpool:
    """A row's number is the number of rows that were added before it. num_tokens: of each row's prompt.

    The file has no name, so that it vanishes with the process, however that ends.
    """

    def __init__(self, folder: Path, tokenizer: Any | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._packed = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file, closefd=False)
        self._tokenizer = tokenizer
        self._uncounted: list[Prompt] = []
        self._num_tokens = array("L")

    def add(self, texts: Texts) -> None:
        prompt, sample_id = (json.dumps(each, ensure_ascii=False) for each in (texts.prompt, texts.sample_id))
        self._packed.write(f"{prompt}\n{texts.ground_truth}\n{sample_id}\n".encode())
        self._uncounted.append(texts.prompt)
        if len(self._uncounted) == _BATCH:
            self._count()

    def _count(self) -> None:
        self._num_tokens.extend(prompt_tokens(self._uncounted, self._tokenizer))
        self._uncounted = []

    def num_tokens(self, number: int) -> int:
        if number >= len(self._num_tokens):
            self._count()
        return self._num_tokens[number]

    def rows(self) -> Iterator[Texts]:
        """All rows in order. Nothing can be added any more."""
        self._packed.close()  # type: ignore[no-untyped-call]
        self._file.seek(0)
        with zstandard.ZstdDecompressor().stream_reader(self._file, closefd=False) as data:
            lines = io.TextIOWrapper(data, encoding="utf-8", newline="\n")
            for prompt, ground_truth, sample_id in zip(lines, lines, lines, strict=True):
                yield Texts(json.loads(prompt), ground_truth.removesuffix("\n"), json.loads(sample_id))
