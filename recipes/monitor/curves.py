"""Hands the metrics of trainings to trackio, which draws them: verl's JSON Lines, else its TensorBoard files.

Each algorithm is a project of trackio's, so that its runs can be compared. trackio keeps everything in a database in
TRACKIO_DIR, which belongs to this process: the files of the run stay the only truth.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from trackio.sqlite_storage import SQLiteStorage

from recipes.monitor.appended_lines import AppendedLines
from recipes.monitor.run_folder import TrainingFolder

# A curve has up to twice as many points; then every second one goes. A screen shows no more.
NUM_POINTS = 1000
# Of an algorithm, the curves of so many newest runs are drawn, because a browser needs long for a hundred.
NUM_DRAWN = 20
# Those of verl's hundred metrics that no panel shows: extremes beside means, and the same numbers once more.
UNSHOWN = re.compile(r"/(max|min)$|^(timing_per_token_ms|global_seqlen|response_length_non_aborted|training/off_pol)")
# Looked at for the newest value of every metric: the last line may be broken, or have a validation alone.
NEWEST_LINES = 5
# verl's lines are longer, so a short first one is broken and says nothing about the others.
SHORT_LINE_BYTES = 500


@dataclass(frozen=True)
class _Row:
    """time_s: since 1970. position: number of the line, or "always" for one that is never thinned out."""

    step: int
    metrics: dict[str, float]
    time_s: float
    position: str

    @property
    def timestamp(self) -> str:
        return datetime.fromtimestamp(self.time_s, UTC).isoformat()

    def log_id(self, run: str) -> str:
        """Every one once in a project."""
        return f"{self.position} {run} {self.step} {self.time_s}"


class Curves:
    """The curves of one training in trackio, and what is known of its newest step.

    last: the newest metrics, by name. step: their step. num_broken: lines that are not verl's. num_points: of a curve.
    """

    def __init__(self, training: TrainingFolder, num_points: int = NUM_POINTS) -> None:
        self.training = training
        self.step: int | None = None
        self.last: dict[str, float] = {}
        self.num_broken = 0
        self._num_points = num_points
        self._files: dict[Path, AppendedLines] = {}
        self._stride = 1
        self._num_lines = 0
        self._num_kept = 0
        self._read_s = 0.0
        self._tensorboard: EventAccumulator | None = None
        self._tensorboard_step = -1

    def update(self) -> None:
        """Hand over what is new."""
        files = self.training.metrics_files
        for file in files:
            self._read(file)
        if not files:
            self._read_tensorboard()

    def _read(self, file: Path) -> None:
        lines = self._files.setdefault(file, AppendedLines(file))
        is_new = lines.offset == 0
        size, changed_s = file.stat().st_size, file.stat().st_mtime
        started_s = max(self._read_s, _start_s(file) or changed_s) if is_new else self._read_s
        rows: list[_Row] = []
        newest: deque[bytes] = deque(maxlen=NEWEST_LINES)
        for start, line in lines.new():
            if start == 0:
                # about as many lines are to come; the others are not even parsed
                while size / max(len(line), SHORT_LINE_BYTES) / self._stride > self._num_points:
                    self._stride *= 2
            newest.append(line)
            # verl reports validations in the line of their step, and there are few
            always = start == 0 or b'"val' in line
            if always or self._num_lines % self._stride == 0:
                record = self._parsed(line)
                if record is not None:
                    share = (start + len(line)) / size
                    time_s = started_s + (changed_s - started_s) * min(share, 1.0)
                    rows.append(_Row(*record, time_s, "always" if always else str(self._num_lines)))
            self._num_lines += 1
        if not newest:
            return
        for line in newest:
            if (record := self._parsed(line, count=False)) is not None:
                self.step, metrics = record
                self.last |= metrics
        self._read_s = changed_s
        if rows:
            if is_new:
                # A resumed run repeats the steps after its last checkpoint.
                self._delete("step >= ?", rows[0].step)
            self._hand_over(rows)

    def _parsed(self, line: bytes, count: bool = True) -> tuple[int, dict[str, float]] | None:
        try:
            record = orjson.loads(line)
            return int(record["step"]), numbers_in(record["data"])
        except (ValueError, TypeError, KeyError, AttributeError):
            self.num_broken += count
            return None

    def _hand_over(self, rows: Sequence[_Row]) -> None:
        """Add the rows as trackio's bulk_log would, which takes ten times as long to look for pictures in them."""
        run = self.training.run
        with self._database() as database:
            database.executemany(
                "INSERT INTO metrics (timestamp, run_id, run_name, step, metrics, log_id) VALUES (?, ?, ?, ?, ?, ?)",
                [(row.timestamp, run, run, row.step, orjson.dumps(row.metrics), row.log_id(run)) for row in rows],
            )
            database.execute(
                "INSERT OR REPLACE INTO configs (run_id, run_name, config, created_at) VALUES (?, ?, ?, ?)",
                (run, run, json.dumps(self.training.record()), rows[0].timestamp),
            )
        self._num_kept += len(rows)
        while self._num_kept > 2 * self._num_points:
            self._stride *= 2
            # the text before the blank as a number; that of "always" is 0
            self._num_kept -= self._delete("CAST(log_id AS INTEGER) % ? != 0", self._stride)

    def _delete(self, condition: str, value: int) -> int:
        with self._database() as database:
            found = database.execute(
                f"DELETE FROM metrics WHERE run_id = ? AND {condition}", (self.training.run, value)
            )
        return found.rowcount

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = SQLiteStorage.get_project_db_path(self.training.algorithm)
        if not path.is_file():
            SQLiteStorage.init_db(self.training.algorithm)
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            yield database

    def _read_tensorboard(self) -> None:
        folder = self.training.tensorboard
        if folder is None or not any(folder.glob("events.out.*")):
            return
        if self._tensorboard is None:
            self._tensorboard = EventAccumulator(str(folder), size_guidance={SCALARS: self._num_points})
        self._tensorboard.Reload()
        steps: dict[int, tuple[dict[str, float], float]] = {}
        for name in self._tensorboard.Tags()[SCALARS]:
            for event in self._tensorboard.Scalars(name):
                if event.step > self._tensorboard_step:
                    steps.setdefault(event.step, ({}, event.wall_time))[0][name] = event.value
        if steps:
            self._hand_over([_Row(step, *steps[step], "always") for step in sorted(steps)])
            self.step = self._tensorboard_step = max(steps)
            self.last = steps[self.step][0]


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of a record's values those that can be drawn. A mean has the short name: reward/score, not reward/score/mean."""
    return {
        re.sub(r"(/\w+)/mean$", r"\1", name): value
        for name, value in metrics.items()
        if type(value) in (int, float) and math.isfinite(value) and _is_shown(name)
    }


@cache
def _is_shown(name: str) -> bool:
    return not UNSHOWN.search(name)


def _start_s(file: Path) -> float | None:
    """When the launch made the file, in seconds since 1970 (its name: recipes.running.environment.log_environment)."""
    if not re.fullmatch(r"\d{8}T\d{6}", file.stem):
        return None
    return datetime.strptime(file.stem, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
