"""Reads a file that another process appends to, each line once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class AppendedLines:
    """A look gives the complete lines that were added since the look before.

    offset: in bytes, where the next line begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def new(self) -> Iterator[tuple[int, bytes]]:
        """Where each new line begins in the file, in bytes, and the line with its newline. A half line waits for its
        end. A file that became shorter is read anew."""
        if not self.path.is_file():
            return
        if self.path.stat().st_size < self.offset:
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start = self.offset
                self.offset += len(line)
                yield start, line
