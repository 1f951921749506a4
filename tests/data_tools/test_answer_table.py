"""Answers to many decisions: their figures by hand, and the files read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import openpyxl
import pytest

from data_tools.answer_table import ALL_ROWS, AnsweredRow, summarise, summary_text, write_table
from data_tools.prompt_rows import PromptRow
from tsc.controllers.language_model import Probabilities, Reply
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import Decision
from tsc.junction.observation import Observation, StageObservation

YES, NO = Decision.YES.answer, Decision.NO.answer


def observation(*queues_veh: int) -> Observation:
    stages = [
        StageObservation(
            stage=number,
            queue_veh=queue_veh,
            moving_near_veh=0,
            moving_mid_veh=0,
            moving_far_veh=0,
            longest_wait_s=0,
            downstream_space_veh=9,
        )
        for number, queue_veh in enumerate(queues_veh)
    ]
    return Observation(
        junction_id="A0",
        elapsed_green_s=10,
        min_green_s=10,
        max_green_s=60,
        green_extension_s=5,
        stages=tuple(stages),
    )


def answered(
    text: str,
    costs: tuple[float, float] | None = None,
    *,
    latency_s: float = 1.0,
    queues_veh: tuple[int, ...] | None = None,
    better: Decision | None = None,
    answer: Decision | None = None,
) -> AnsweredRow:
    row = PromptRow(
        number=0,
        prompt=[{"role": "user", "content": "Extend?"}],
        observation=observation(*queues_veh) if queues_veh else None,
        better=better,
        answer=answer,
    )
    outcomes = Outcomes(yes=costs[0], no=costs[1]) if costs else None
    reply = Reply(text, latency_s, probabilities=Probabilities(yes=0.75, no=0.25))
    return AnsweredRow(row=row, reply=reply, outcomes=outcomes)


ANSWERED = [
    answered(YES, (10, 30), latency_s=1, queues_veh=(2, 3)),
    answered(NO, (10, 30), latency_s=2, queues_veh=(3, 3), answer=Decision.NO),
    answered("\x01=1+1", (10, 30), latency_s=3, queues_veh=(9, 7), answer=Decision.NO),
    answered(NO, (20, 20), latency_s=4, queues_veh=(16, 0)),
    answered(NO, better=Decision.NO, latency_s=5),
]


def test_the_figures_are_those_by_hand() -> None:
    summary = summarise(ANSWERED)
    assert summary[ALL_ROWS] == {
        "rows": 5,
        "invalid_share": pytest.approx(1 / 5),
        "rows_with_better": 4,  # not the tie
        "accuracy": pytest.approx(2 / 4),  # right, wrong, invalid, right
        "mean_regret": pytest.approx((0 + 20 + 0) / 3),  # not of the invalid answer
        "agreement": pytest.approx(1 / 2),
        "latency_p50_s": pytest.approx(3),
        "latency_p95_s": pytest.approx(4.8),
    }
    classes = {name: figures["rows"] for name, figures in summary.items() if name != ALL_ROWS}
    assert classes == {"queue 0–5 veh": 1, "queue 6–15 veh": 1, "queue over 15 veh": 2}
    assert summary["queue over 15 veh"]["accuracy"] == 0 and summary["queue 0–5 veh"]["agreement"] is None
    lines = summary_text(summary).splitlines()
    assert lines[0].split() == [
        "rows",
        "invalid",
        "accuracy",
        "mean",
        "regret",
        "agreement",
        "p50",
        "[s]",
        "p95",
        "[s]",
    ]
    assert lines[1].split() == ["all", "5", "20.0%", "50.0%", "6.67", "50.0%", "3.000", "4.800"]
    assert lines[2].split()[-3:] == ["-", "1.000", "1.000"] and len(set(map(len, lines))) == 1


def test_rows_without_outcomes_have_no_figures_of_them() -> None:
    summary = summarise([answered(YES)])
    assert list(summary) == [ALL_ROWS]
    assert summary[ALL_ROWS]["accuracy"] is summary[ALL_ROWS]["mean_regret"] is None


def test_a_workbook_has_the_rows_and_the_summary_and_no_formula(tmp_path: Path) -> None:
    rows = [*ANSWERED, answered("=1+1")]
    write_table(tmp_path / "out.xlsx", rows, summarise(rows))
    book = openpyxl.load_workbook(tmp_path / "out.xlsx")
    assert book.sheetnames == ["rows", "summary"]
    names, *lines = book["rows"].iter_rows(values_only=True)
    read = [dict(zip(names, line, strict=True)) for line in lines]
    assert [line["decision"] for line in read] == ["yes", "no", None, "no", "no", None]
    assert [line["better"] for line in read] == ["yes", "yes", "yes", "tie", "no", None]
    assert [line["regret"] for line in read] == [0, 20, None, 0, None, None]
    assert [line["queue_veh"] for line in read] == [5, 6, 16, 16, None, None]
    assert (read[0]["p_yes"], read[0]["p_no"], read[0]["cost_yes"]) == (0.75, 0.25, 10)
    assert (read[0]["prompt"], read[2]["model_answer"]) == ("user: Extend?", "\N{REPLACEMENT CHARACTER}=1+1")
    formula = book["rows"].cell(7, names.index("model_answer") + 1)
    assert (formula.value, formula.data_type) == ("=1+1", "s")
    head, total, *classes = book["summary"].iter_rows(values_only=True)
    assert dict(zip(head, total, strict=True))["rows of"] == ALL_ROWS and len(classes) == 3
    assert dict(zip(head, total, strict=True))["accuracy"] == pytest.approx(0.5)


def test_json_and_csv_have_the_same_rows(tmp_path: Path) -> None:
    summary = summarise(ANSWERED)
    for name in ("out.json", "out.csv"):
        write_table(tmp_path / name, ANSWERED, summary)
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["summary"] == summary
    assert values["rows"][0]["prompt"] == [{"role": "user", "content": "Extend?"}]
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["decision"] for line in lines] == ["yes", "no", "", "no", "no"]
    assert list(lines[0]) == list(values["rows"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.json"]
