"""episodes.jsonl: one line per episode, appended when it ends, so that an evaluation can continue after a kill."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError
from tsc.files import write_atomically


class EpisodesFile:
    """The stored episodes of an evaluation.

    `episodes`: the records with a wanted fingerprint, each once, in the file's order. Other records stay in the file,
    so a call with fewer seeds or controllers does not lose them. A last line that was cut short by a kill is dropped.
    Raises ConfigError if the file is not an episodes.jsonl.
    """

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        self._path = path
        stored = _records(path)
        found: dict[str, dict[str, Any]] = {}
        for record in stored:
            if record["fingerprint"] in wanted:
                found.setdefault(record["fingerprint"], record)
        self.episodes = list(found.values())
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
            raise ConfigError(f"{path}:{number} is not JSON: choose another --out, or delete the line") from None
        if not isinstance(record, dict) or "fingerprint" not in record:
            raise ConfigError(f"{path}:{number} is not the record of an episode: choose another --out")
        records.append(record)
    return records
