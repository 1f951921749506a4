"""The trainings in a folder of runs: where their files lie, and whether they still run."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from recipes.running.run_record import RECORD_FILE
from recipes.running.supervise import STOPPED, awaited, raised_errors
from tsc.files import LOCK_FILE

# A run on another machine counts as running for so long after it last wrote something.
SILENT_S = 600.0
# The end of train.log in which the cause of a crash is looked for.
LOG_TAIL_BYTES = 50_000


@dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """run: name of the run (demo; of a later round demo-round2). algorithm: name of the recipe (grpo).

    run_folder, folder: of the run, and of this training in it.
    """

    run: str
    algorithm: str
    run_folder: Path
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.algorithm}/{self.run}"

    @property
    def metrics_files(self) -> list[Path]:
        """One for each start, in their order."""
        return sorted(filter(self._is_own, (self.folder / "metrics").glob("*.jsonl")))

    @property
    def samples_file(self) -> Path | None:
        return self._own("samples.jsonl")

    @property
    def tensorboard(self) -> Path | None:
        return self._own("tensorboard")

    @property
    def report(self) -> Path | None:
        """Of the newest evaluation of the run."""
        path = self.run_folder / "eval" / "report.html"
        return path if self._is_own(path) else None

    def record(self) -> dict[str, Any]:
        """What the launch noted of itself (recipes.running.run_record); empty for an older run."""
        path = self._own(RECORD_FILE)
        found: dict[str, Any] = json.loads(path.read_text()) if path else {}
        return found

    def changed_s(self) -> float:
        """When the training last wrote a metric or a line of its log, in seconds since 1970; 0 if never."""
        files = [*self.metrics_files[-1:], self.folder / "train.log"]
        return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)

    def state(self) -> str:
        """running, finished, crashed or stopped (by a person, or by a kill that left no trace in the log)."""
        exported = self.folder / "exported_step"
        if exported.is_file() and exported.stat().st_mtime >= self.changed_s():
            return "finished"
        if self._is_locked():
            return "running"
        return "crashed" if self.errors() else "stopped"

    def errors(self) -> list[str]:
        """The last errors in the log; none where somebody ended the training."""
        text = self._end_of_log()
        return [] if text.rstrip().rpartition("\n")[2].startswith(STOPPED) else raised_errors(text)

    def awaited(self) -> str | None:
        """What a step that takes long waits for."""
        return awaited(self._end_of_log())

    def _end_of_log(self) -> str:
        log = self._own("train.log")
        if log is None:
            return ""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")

    def _own(self, name: str) -> Path | None:
        """What has this name in the folder; None if it is not there."""
        path = self.folder / name
        return path if self._is_own(path) else None

    def _is_own(self, path: Path) -> bool:
        """Whether it is there, and inside the run's folder also after all links are followed."""
        return path.exists() and path.resolve().is_relative_to(self.run_folder)

    def _is_locked(self) -> bool:
        """Whether the launch that holds the lock of this training still lives."""
        for folder in (self.folder, self.folder.parent):
            try:
                holder = re.match(r"process (\d+) on (\S+)", (folder / LOCK_FILE).read_text())
            except (FileNotFoundError, NotADirectoryError):
                continue
            if holder and holder[2] == socket.gethostname():
                return bool(psutil.pid_exists(int(holder[1])))
            return time.time() - self.changed_s() < SILENT_S
        return False


def trainings_in(runs: Path) -> Iterator[TrainingFolder]:
    """All trainings with metrics, in the order of their names. Links that lead out of a run's folder are left out."""
    root = runs.resolve()
    patterns = [f"{folder}/{name}" for folder in ("*/*", "*/*/round*") for name in ("metrics", "tensorboard")]
    for folder in sorted({found.parent for pattern in patterns for found in root.glob(pattern)}):
        if folder.resolve() == folder:
            run, algorithm, *rounds = folder.relative_to(root).parts
            yield TrainingFolder(
                run="-".join([run, *rounds]), algorithm=algorithm, run_folder=root / run, folder=folder
            )
