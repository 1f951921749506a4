"""episodes.jsonl: one line an episode, appended as each ends, so that a killed evaluation repeats none."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError
from tsc.files import write_atomically


class EpisodesFile:
    """`episodes` are those that hold: with a wanted fingerprint, each once, in the file's order.

    Others stay in the file, so that a call with fewer seeds or controllers loses nothing. A last line that a kill has
    cut short is dropped. Raises ConfigError for a file of another kind.
    """

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        self._path = path
        self.episodes: list[dict[str, Any]] = []
        stored = _records(path)
        found: set[str] = set()
        for record in stored:
            if record["fingerprint"] in wanted and record["fingerprint"] not in found:
                found.add(record["fingerprint"])
                self.episodes.append(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in stored).encode())

    def append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.episodes.append(record)


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ConfigError(f"{path}:{number} is no JSON object: choose another --out, or delete the line") from None
        if not isinstance(record, dict) or "fingerprint" not in record:
            raise ConfigError(f"{path}:{number} is no episode: choose another --out")
        records.append(record)
    return records
