"""One line of a benchmark: a figure, what it stands beside, and what it must reach."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tsc.files import write_atomically
from tsc.sumo.version import installed_sumo_version

# a load average of more than this many processes a core leaves no core free for a measurement
BUSY_LOAD_PER_CORE = 0.25


@dataclass(frozen=True, kw_only=True)
class Bound:
    """at: "least" or "most"."""

    at: Literal["least", "most"]
    value: float

    def holds(self, value: float) -> bool:
        return value >= self.value if self.at == "least" else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at == 'least' else '≤'} {self.value:,g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """value, beside: in `unit`. must_reach: a bound on the ratio, or on the value where there is nothing beside it;
    None for a row that only informs. what: for the reader of the table."""

    name: str
    what: str
    value: float
    unit: str
    beside: float | None = None
    must_reach: Bound | None = None

    @classmethod
    def of_medians(
        cls,
        *,
        name: str,
        what: str,
        values: Sequence[float],
        unit: str,
        beside: Sequence[float] | None = None,
        must_reach: Bound | None = None,
    ) -> Row:
        """Of the figures of all repetitions."""
        middle = median(beside) if beside is not None else None
        return cls(name=name, what=what, value=median(values), unit=unit, beside=middle, must_reach=must_reach)

    @property
    def ratio(self) -> float | None:
        """value / beside: the ratio of the medians, not the median of ratios, so that it follows from the row."""
        return self.value / self.beside if self.beside else None

    @property
    def ok(self) -> bool | None:
        """None where there is nothing to reach."""
        if self.must_reach is None:
            return None
        return self.must_reach.holds(self.value if self.ratio is None else self.ratio)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "beside": self.beside,
            "ratio": self.ratio,
            "must_reach": self.must_reach.value if self.must_reach else None,
            "ok": self.ok,
        }


@dataclass(frozen=True, kw_only=True)
class Machine:
    """load: processes that were running or waiting for a core, mean over the minute before the start."""

    cores: int
    cpu_model: str
    load: float

    @classmethod
    def here(cls) -> Machine:
        """cores: those that this process may use."""
        return cls(cores=len(os.sched_getaffinity(0)), cpu_model=_cpu_model(), load=os.getloadavg()[0])

    @property
    def is_busy(self) -> bool:
        return self.load > BUSY_LOAD_PER_CORE * self.cores

    def lines(self) -> list[str]:
        lines = [
            f"machine: {self.cores} cores, {self.cpu_model}, load average {self.load:.2f} at the start; "
            f"SUMO {installed_sumo_version()}"
        ]
        if self.is_busy:
            lines.append(
                f"warning: the machine is busy (load average above {BUSY_LOAD_PER_CORE * self.cores:g}): rates by the "
                "clock come out too low, ratios by CPU time less sharp; repeat on an idle one"
            )
        return lines


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown CPU"


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, numbers to the right."""
    verdicts: Mapping[bool | None, str] = {True: "yes", False: "no", None: ""}
    cells = [("name", "value", "unit", "beside", "ratio", "must reach", "ok", "what, beside what")]
    for row in rows:
        cells.append(
            (
                row.name,
                number(row.value),
                row.unit,
                number(row.beside),
                number(row.ratio),
                str(row.must_reach or ""),
                verdicts[row.ok],
                row.what,
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_the_right = (1, 3, 4, 5)
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if index in to_the_right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits that count, and no exponent."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    for digits, least in ((0, 100), (1, 10), (2, 1), (3, 0.1)):
        if abs(value) >= least:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """A JSON list of Row.as_dict(). Appears atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps([row.as_dict() for row in rows], indent=1, ensure_ascii=False) + "\n").encode())
