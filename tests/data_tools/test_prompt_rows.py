"""Files with decisions that a model is to be asked for, and what is said of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.json_to_parquet import main as json_to_parquet
from data_tools.prompt_rows import check_suffix, read_prompt_rows
from tests.data_tools.conftest import Samples
from tsc.errors import ConfigError, SampleError
from tsc.junction.decision import Decision

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Extend?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "Extend?", "better": "yes", "answer": '{"extend": "no"}', "remark": "mine"},
    {"prompt": CHAT, "better": "No"},
    {"prompt": json.dumps(CHAT), "better": None, "answer": ""},
]


def write_excel(path: Path, lines: list[list[Any]]) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for line in lines:
        book.active.append(line)
    book.save(path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        flat = [{name: json.dumps(v) if isinstance(v := row.get(name), list) else v for name in names} for row in rows]
        if path.suffix == ".xlsx":
            write_excel(path, [names, *(list(row.values()) for row in flat)])
        else:
            pq.write_table(pa.Table.from_pylist(flat), path)
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet", "rows.xlsx"])
def test_a_table_says_the_same_in_every_form(tmp_path: Path, name: str) -> None:
    rows = read_prompt_rows(write_rows(tmp_path / name, ROWS))
    assert [row.prompt for row in rows] == [[CHAT[1]], CHAT, CHAT]
    assert [row.better for row in rows] == [Decision.YES, Decision.NO, None]
    assert [row.answer for row in rows] == [Decision.NO, None, None]
    assert [row.number for row in rows] == ([2, 3, 4] if name == "rows.xlsx" else [0, 1, 2])
    assert {row.outcomes for row in rows} == {row.request for row in rows} == {None}


def test_a_dataset_and_its_parquet_files_know_the_outcomes_and_the_state(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = write_dataset()
    samples: Samples = json.loads(dataset.read_text())
    json_to_parquet(["--input", str(dataset), "--output", str(tmp_path / "parquet"), "--ties", "keep"])
    of_dataset = read_prompt_rows(dataset)
    of_parquet = [row for side in ("train", "val") for row in read_prompt_rows(tmp_path / f"parquet/{side}.parquet")]
    assert len(of_dataset) == len(of_parquet) == len(samples)
    by_id = {row.id: row for row in of_parquet}
    for row, sample in zip(of_dataset, samples, strict=True):
        other = by_id[sample["id"]]
        assert row.outcomes is not None and other.outcomes is not None
        assert (row.outcomes.yes, row.outcomes.no) == (sample["outcomes"]["yes"], sample["outcomes"]["no"])
        assert (row.prompt, row.outcomes, row.timing) == (other.prompt, other.outcomes, other.timing)
        assert row.request is not None and other.request is not None
        assert row.request.state_path.is_file() and row.request.state_path == other.request.state_path
    assert (of_dataset[0].junction_id, of_dataset[0].time_s) == ("A0", samples[0]["time_s"])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"promt": "Extend?"}, "row 1: column prompt is missing: did you mean 'promt'? the columns are promt"),
        ({"prompt": ""}, "row 1: column prompt: '' is not a prompt: must be a text, or chat messages with role and"),
        ({"prompt": 5}, "row 1: column prompt: 5 is not a prompt"),
        ({"prompt": []}, "row 1: column prompt: [] is not a prompt"),
        ({"prompt": "[{broken"}, "row 1: column prompt: its text begins as chat messages in JSON, but is not JSON"),
        (
            {"prompt": [{"role": "robot", "content": "x"}]},
            "row 1: column prompt.0.role is \"robot\": input should be 'system', 'user' or 'assistant'",
        ),
        ({"prompt": [{"role": "user"}]}, "row 1: column prompt.0.content is missing"),
        ({"prompt": "x", "better": "maybe"}, "row 1: column better is \"maybe\": input should be 'yes' or 'no'"),
        ({"prompt": "x", "answer": "extend"}, "row 1: column answer is \"extend\": input should be 'yes' or 'no'"),
        ("x", "row 1 is 'x': must be an object with the column prompt"),
        ({"state_file": "s.xml"}, "row 1: column junction_id is missing"),
        (
            {"prompt": "x", "reward_model": {"ground_truth": "{}"}},
            "row 1: column reward_model.ground_truth is not as json_to_parquet writes it",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_column_and_what_is_allowed(tmp_path: Path, row: Any, told: str) -> None:
    path = write_rows(tmp_path / "rows.json", [ROWS[0]])
    path.write_text(json.dumps([ROWS[0], row]))
    with pytest.raises(SampleError) as caught:
        read_prompt_rows(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_all_wrong_rows_are_told_up_to_a_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x", "better": "both"}] * 25)
    with pytest.raises(SampleError) as caught:
        read_prompt_rows(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and "row 19: column better" in lines[19] and lines[20].strip() == "and 5 more"


def test_a_wrong_cell_of_a_workbook_is_named_by_its_row_there(tmp_path: Path) -> None:
    write_excel(tmp_path / "rows.xlsx", [["prompt", "better"], ["x", "yes"], [None, None], ["y", 7]])
    with pytest.raises(SampleError, match=r"rows.xlsx: row 4: column better is 7: input should be 'yes' or 'no'"):
        read_prompt_rows(tmp_path / "rows.xlsx")
    write_excel(tmp_path / "rows.xlsx", [["Prompts", "better"], ["x", "yes"]])
    with pytest.raises(SampleError, match=r"prompt is missing: did you mean 'Prompts'\? the columns are Prompts, be"):
        read_prompt_rows(tmp_path / "rows.xlsx")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.json", b"[]", "does not have any row"),
        ("rows.json", b'[{"prompt": "x"}, oops]', "rows.json:1:19: broken JSON array"),
        ("rows.jsonl", b'{"prompt": "x"}\noops\n', "rows.jsonl:2:1: broken JSON line"),
        ("rows.parquet", b"oops", "rows.parquet: cannot be read as Parquet"),
        ("rows.xlsx", b"oops", "rows.xlsx: cannot be read as a workbook"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SampleError, match=told):
        read_prompt_rows(tmp_path / name)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt\nx\n")
    with pytest.raises(ConfigError, match=r"ends with '.csv': choose one of .json, .jsonl, .parquet, .xlsx"):
        read_prompt_rows(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match=r"--output-file a.ods ends with '.ods': choose one of .xlsx, .json"):
        check_suffix(Path("a.ods"), (".xlsx", ".json"), "--output-file")
