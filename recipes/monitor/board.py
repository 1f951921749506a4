"""Everything that the pages show: the trainings of a folder, looked at again every few seconds."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trackio.cpu import collect_cpu_metrics
from trackio.gpu import collect_gpu_metrics
from trackio.sqlite_storage import SQLiteStorage

from recipes.monitor.curves import NUM_DRAWN, NUM_POINTS, Curves
from recipes.monitor.run_folder import TrainingFolder, trainings_in
from recipes.monitor.samples import Samples

LOOK_EVERY_S = 3.0
MEASURE_EVERY_S = 10.0
SHOWN_OF_MACHINE = ("cpu/utilization", "memory/used", "memory/total")
# Of all curves that are drawn at once, together.
POINTS_IN_ALL = 2000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training in the table. steps: in all, None if unknown. score: of the newest step; the loss of SFT and DPO."""

    run: str
    algorithm: str
    state: str
    step: int | None
    steps: int | None
    score: float | None
    step_s: float | None
    changed: str
    faults: tuple[str, ...]
    has_samples: bool
    has_report: bool


class Watched:
    """One training with what was read of it."""

    def __init__(self, training: TrainingFolder, num_points: int) -> None:
        self.training = training
        self.curves = Curves(training, num_points)
        self.samples = Samples()
        self.fault = ""

    def update(self) -> None:
        """Read what is new. A file that cannot be read is a fault to show, and the others are read all the same."""
        try:
            self.curves.update()
            if (path := self.training.samples_file) is not None:
                self.samples.update(path)
            self.fault = ""
        except OSError as error:
            self.fault = str(error)

    def row(self, now_s: float) -> Row:
        training, last = self.training, self.curves.last
        state = training.state()
        faults = [self.fault] if self.fault else []
        num_broken = self.curves.num_broken + self.samples.num_broken
        if num_broken:
            faults.append(f"{num_broken} lines of the metrics or samples are broken and were left out")
        if state == "crashed":
            faults += training.errors()
        if state == "running" and (waits := training.awaited()):
            faults.append(waits)
        changed_s = training.changed_s()
        return Row(
            run=training.run,
            algorithm=training.algorithm,
            state=state,
            step=self.curves.step,
            steps=training.record().get("steps"),
            score=next((last[name] for name in ("reward/score", "critic/score", "train/loss") if name in last), None),
            step_s=last.get("timing_s/step"),
            changed=_ago(now_s - changed_s) if changed_s else "",
            faults=tuple(faults),
            has_samples=bool(self.samples.steps),
            has_report=training.report is not None,
        )


class Board:
    """The trainings below `runs`. update: look at all of them once. start: do so for ever, in a thread."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._watched: dict[str, Watched] = {}
        self._measured_s = float("-inf")
        self._thread = threading.Thread(target=self._watch, name="board", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self) -> None:
        found = {training.name: training for training in trainings_in(self.runs)}
        self._watched = {name: watched for name, watched in self._watched.items() if name in found}
        num_points = min(NUM_POINTS, POINTS_IN_ALL // min(max(len(found), 1), NUM_DRAWN))
        for training in sorted(found.values(), key=TrainingFolder.changed_s, reverse=True):
            if training.name not in self._watched:
                # a new table for each change: a page may be reading the old one
                self._watched = {**self._watched, training.name: Watched(training, num_points)}
            self._watched[training.name].update()

    def get(self, name: str) -> Watched | None:
        return self._watched.get(name)

    def rows(self) -> list[Row]:
        """Those that run first, then the newest."""
        now_s = time.time()
        found = sorted(self._watched.values(), key=lambda each: each.training.changed_s(), reverse=True)
        return sorted((each.row(now_s) for each in found), key=lambda row: row.state != "running")

    def _watch(self) -> None:
        while True:
            self.update()
            if time.monotonic() - self._measured_s >= MEASURE_EVERY_S:
                self._measured_s = time.monotonic()
                self._measure_machine()
            time.sleep(LOOK_EVERY_S)

    def _measure_machine(self) -> None:
        """CPU, memory and GPUs of this machine, for every training that runs here."""
        running = [each.training for each in self._watched.values() if each.training.state() == "running"]
        if not running:
            return
        of_machine = collect_cpu_metrics(include_static=False)
        measured = {name: of_machine[name] for name in SHOWN_OF_MACHINE} | collect_gpu_metrics(all_gpus=True)
        for training in running:
            SQLiteStorage.bulk_log_system(
                training.algorithm, training.run, [measured], timestamps=[datetime.now(UTC).isoformat()]
            )


def _ago(seconds: float) -> str:
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
