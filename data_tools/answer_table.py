"""The answers of a model to many decisions: a row for each, a summary, and the files that hold both."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.prompt_rows import EXCEL, PromptRow
from tsc.controllers.language_model import Reply
from tsc.cost.outcome import Outcomes
from tsc.files import write_atomically
from tsc.junction.decision import Answer, Decision, parse_answer

OUTPUT_SUFFIXES = (EXCEL, ".json", ".csv")
ALL_ROWS = "all"
# Classes of the junction's queue, which is that of all stages together: name, and the most vehicles.
QUEUE_CLASSES = (("queue 0–5 veh", 5), ("queue 6–15 veh", 15), ("queue over 15 veh", None))


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """outcomes: None if neither the file nor a replay has them."""

    row: PromptRow
    reply: Reply
    outcomes: Outcomes | None

    @property
    def read(self) -> Answer:
        return parse_answer(self.reply.text or "")

    @property
    def better(self) -> Decision | None:
        """The better answer, by the outcomes or else by the file. None for a tie, and if it is unknown."""
        return self.outcomes.better() if self.outcomes is not None else self.row.better

    @property
    def regret(self) -> float | None:
        """The cost of the answer minus that of the cheaper one. None for an invalid answer, and without outcomes."""
        decision = self.read.decision
        if decision is None or self.outcomes is None:
            return None
        return self.outcomes.cost(decision) - min(self.outcomes.yes, self.outcomes.no)

    @property
    def queue_veh(self) -> int | None:
        """Halting vehicles on the approaches of all stages. None for a row without an observation."""
        observation = self.row.observation
        return None if observation is None else sum(lanes.queue_veh for lanes in observation.by_turns.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the row of the output file. Costs are in the unit of the measure, usually veh·s."""
        row, reply, outcomes, probabilities = self.row, self.reply, self.outcomes, self.reply.probabilities
        better: str | None = self.better
        if outcomes is not None and better is None:
            better = "tie"
        return {
            "row": row.number,
            "id": row.id,
            "scenario": row.scenario,
            "junction": row.junction_id,
            "time_s": row.time_s,
            "queue_veh": self.queue_veh,
            "prompt": row.prompt,
            "model_answer": reply.text,
            "decision": self.read.decision,
            "form": self.read.form,
            "p_yes": probabilities and probabilities.yes,
            "p_no": probabilities and probabilities.no,
            "cost_yes": outcomes and outcomes.yes,
            "cost_no": outcomes and outcomes.no,
            "better": better,
            "regret": self.regret,
            "answer": row.answer,
            "latency_s": reply.latency_s,
        }


def summarise(rows: Sequence[AnsweredRow]) -> dict[str, dict[str, float | int | None]]:
    """The figures of all rows, then those of each class of the queue that has rows."""
    groups = {ALL_ROWS: list(rows)}
    smallest = 0
    for name, largest in QUEUE_CLASSES:
        of_class = [
            row
            for row in rows
            if row.queue_veh is not None and row.queue_veh >= smallest and (largest is None or row.queue_veh <= largest)
        ]
        if of_class:
            groups[name] = of_class
        smallest = (largest or 0) + 1
    return {name: _figures(group) for name, group in groups.items()}


def _figures(rows: Sequence[AnsweredRow]) -> dict[str, float | int | None]:
    """accuracy: over the rows with a better answer; an invalid answer is wrong. agreement: with the column answer, over
    the rows that have it. mean_regret: over the valid answers with known outcomes. None where there is no such row."""
    judged = [row.read.decision is row.better for row in rows if row.better is not None]
    compared = [row.read.decision is row.row.answer for row in rows if row.row.answer is not None]
    regrets = [row.regret for row in rows if row.regret is not None]
    latencies = [row.reply.latency_s for row in rows]
    return {
        "rows": len(rows),
        "invalid_share": float(np.mean([row.read.decision is None for row in rows])),
        "rows_with_better": len(judged),
        "accuracy": _mean(judged),
        "mean_regret": _mean(regrets),
        "agreement": _mean(compared),
        "latency_p50_s": float(np.percentile(latencies, 50)),
        "latency_p95_s": float(np.percentile(latencies, 95)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "rows": ("rows", "{:,}".format),
    "invalid_share": ("invalid", "{:.1%}".format),
    "accuracy": ("accuracy", "{:.1%}".format),
    "mean_regret": ("mean regret", "{:.2f}".format),
    "agreement": ("agreement", "{:.1%}".format),
    "latency_p50_s": ("p50 [s]", "{:.3f}".format),
    "latency_p95_s": ("p95 [s]", "{:.3f}".format),
}


def summary_text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as a table for a terminal."""
    lines = [["", *(title for title, _ in _WORDS.values())]]
    for name, figures in summary.items():
        shown = ["-" if figures[key] is None else show(figures[key]) for key, (_, show) in _WORDS.items()]
        lines.append([name, *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def prompt_text(prompt: Sequence[Mapping[str, str]]) -> str:
    """A prompt for a reader."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def write_table(path: Path, rows: Sequence[AnsweredRow], summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the rows as the suffix of `path` says (OUTPUT_SUFFIXES), whole or not at all.

    A workbook has the sheets `rows` and `summary`, JSON the keys of these names. CSV has the rows only.
    """
    records = [row.as_dict() for row in rows]
    if path.suffix == ".json":
        values = {"summary": summary, "rows": records}
        write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
        return
    flat = [record | {"prompt": prompt_text(record["prompt"])} for record in records]
    if path.suffix == EXCEL:
        figures = [{"rows of": name, **values} for name, values in summary.items()]
        write_atomically(path, _workbook({"rows": flat, "summary": figures}))
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, text.getvalue().encode())


def _workbook(sheets: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Records of the same keys in each sheet, the keys in its first row."""
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook()
    book.remove(book.active)
    for name, records in sheets.items():
        sheet = book.create_sheet(name)
        sheet.freeze_panes = "A2"
        for number, values in enumerate([list(records[0]), *(list(record.values()) for record in records)], start=1):
            for column, value in enumerate(values, start=1):
                cell = sheet.cell(number, column)
                if isinstance(value, str):
                    # What a model says may hold control characters, or begin as a formula.
                    cell.value = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value)
                    cell.data_type = "s"
                else:
                    cell.value = value
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()
