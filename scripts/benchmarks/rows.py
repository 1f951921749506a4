"""The rows of a benchmark: a value, the value that it is compared with, and its bound."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.stopwatch import Cost
from tsc.evaluation.machine import processor_name
from tsc.files import write_atomically
from tsc.sumo.version import installed_sumo_version

# with a load average above this many processes per core, no core is free for a measurement
BUSY_LOAD_PER_CORE = 0.25


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound that a value or a ratio must reach: at least or at most `value`."""

    at: Literal["least", "most"]
    value: float

    def holds(self, value: float) -> bool:
        return value >= self.value if self.at == "least" else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at == 'least' else '≤'} {self.value:,g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a benchmark.

    what: the explanation in the table. value: in `unit`.
    beside: the value that it is compared with, in the same unit; None if it is not compared.
    must_reach: a bound on the ratio, or on the value if it is not compared; None for a row that only informs.
    """

    name: str
    what: str
    value: float
    unit: str
    beside: float | None = None
    must_reach: Bound | None = None

    @classmethod
    def of_medians(cls, name: str, what: str, values: Sequence[float], beside: Sequence[float], **more: Any) -> Row:
        """The row of the medians over all steps of a training. more: unit and must_reach."""
        return cls(name=name, what=what, value=median(values), beside=median(beside), **more)

    @classmethod
    def of_rates(
        cls, name: str, what: str, costs: Sequence[Cost], beside: Sequence[Cost], *, by_cpu: bool = False, **more: Any
    ) -> Row:
        """The row of the fastest repetitions, by the clock or by CPU time. more: unit and must_reach."""
        value, other = (fastest(side, by_cpu=by_cpu) for side in (costs, beside))
        return cls(name=name, what=what, value=value, beside=other, **more)

    @property
    def ratio(self) -> float | None:
        """value / beside, not a mean of the repetitions' ratios, so it follows from the row."""
        return self.value / self.beside if self.beside else None

    @property
    def ok(self) -> bool | None:
        """Whether the row reaches its bound; None without a bound."""
        if self.must_reach is None:
            return None
        return self.must_reach.holds(self.value if self.ratio is None else self.ratio)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "beside": self.beside,
            "ratio": self.ratio,
            "must_reach": self.must_reach.value if self.must_reach else None,
            "ok": self.ok,
        }


def fastest(costs: Sequence[Cost], *, by_cpu: bool) -> float:
    """The rate of the fastest repetition. What slows the others, such as other guests of a host, is not the program."""
    return max(cost.rate_per_core_s if by_cpu else cost.rate_per_s for cost in costs)


def machine_lines(load: float) -> list[str]:
    """What the measuring machine is. A busy one is warned of.

    load: processes that were running or waiting for a core, mean over the minute before the start.
    """
    cores = len(os.sched_getaffinity(0))  # those that this process may use
    lines = [
        f"machine: {cores} cores, {processor_name()}, load average {load:.2f} at the start; "
        f"SUMO {installed_sumo_version()}"
    ]
    if load > BUSY_LOAD_PER_CORE * cores:
        lines.append(
            f"warning: the machine is busy (load average above {BUSY_LOAD_PER_CORE * cores:g}), so rates in real time "
            "are too low, and ratios by CPU time are less precise: repeat on an idle machine"
        )
    return lines


def table(rows: Sequence[Row]) -> str:
    """The rows in aligned columns, with numbers to the right."""
    verdicts: Mapping[bool | None, str] = {True: "yes", False: "no", None: ""}
    cells = [("name", "value", "unit", "beside", "ratio", "must reach", "ok", "what; compared with")]
    for row in rows:
        value, beside, ratio = map(number, (row.value, row.beside, row.ratio))
        cells.append((row.name, value, row.unit, beside, ratio, str(row.must_reach or ""), verdicts[row.ok], row.what))
    columns = []
    for index, column in enumerate(zip(*cells, strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if index in (1, 3, 4, 5) else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def number(value: float | None) -> str:
    """The value with about three significant digits, without an exponent."""
    if value is None:
        return ""
    digits = 2 - math.floor(math.log10(abs(value) or 1e-4))
    return f"{value:,.{min(max(digits, 0), 4)}f}"


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a JSON list of Row.as_dict(). The file appears atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps([row.as_dict() for row in rows], indent=1, ensure_ascii=False) + "\n").encode())
