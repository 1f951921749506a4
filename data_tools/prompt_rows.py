"""Reads the decisions that a model is to be asked for: datasets of this project, their Parquet files, or plain tables.

JSON arrays, JSON Lines and Parquet hold samples of a dataset, or rows with these columns; Excel workbooks hold the
latter, in their first sheet, with the names of the columns in the first row:

prompt    a text (the user's message), or chat messages with role and content; in a workbook, as JSON
better    optional: the better answer, yes or no
answer    optional: somebody else's answer to compare with, yes or no
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError, field_validator

from data_tools.dataset_checks import fault_messages
from data_tools.json_objects import PACKED_SUFFIXES, Fault, read_objects
from tsc.cost.outcome import Outcomes
from tsc.errors import ConfigError, SampleError, did_you_mean
from tsc.files import install_command
from tsc.junction.decision import Decision, parse_answer
from tsc.junction.observation import Observation
from tsc.junction.timing import Timing
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Message, Sample, SampleOutcomes, find_dataset_files

JSON_SUFFIXES = (".json", ".jsonl")
PARQUET = ".parquet"
EXCEL = ".xlsx"
SUFFIXES = (*JSON_SUFFIXES, PARQUET, EXCEL)
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A decision that a model is to be asked for.

    number: in its file: from 0; in a workbook, as the program that shows it counts.
    better, answer: the columns of a plain table. outcomes: the label of a sample. request: how to replay a sample's
    state. The other fields are None where the file does not say them.
    """

    number: int
    prompt: list[dict[str, str]]
    id: str | None = None
    scenario: str | None = None
    junction_id: str | None = None
    time_s: float | None = None
    prompt_version: str | None = None
    observation: Observation | None = None
    timing: Timing | None = None
    better: Decision | None = None
    answer: Decision | None = None
    outcomes: Outcomes | None = None
    request: ReplayRequest | None = field(default=None, repr=False)


class _PlainRow(BaseModel):
    prompt: list[Message] = Field(min_length=1)
    better: Decision | None = None
    answer: Decision | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _text_as_messages(cls, value: Any) -> Any:
        if isinstance(value, list) and value:
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{value!r} is not a prompt: must be a text, or chat messages with role and content")
        if value.lstrip().startswith("[{"):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"its text begins as chat messages in JSON, but is not JSON: {error}") from error
        return [{"role": "user", "content": value}]

    @field_validator("better", "answer", mode="before")
    @classmethod
    def _words_as_decision(cls, value: Any) -> Any:
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        if not isinstance(value, str):
            return value
        return parse_answer(value).decision or value.strip().lower()


def read_prompt_rows(path: Path) -> list[PromptRow]:
    """All rows of a file, or of the datasets in a folder.

    Raises SampleError that names each wrong row and column (the first MAX_FAULTS_SHOWN), and ConfigError for a file of
    another kind.
    """
    rows: list[PromptRow] = []
    faults: list[str] = []
    for file in find_dataset_files(path):
        try:
            for row in _rows_of(file):
                if isinstance(row, PromptRow):
                    rows.append(row)
                else:
                    faults.append(row)
        except SampleError as error:  # of the whole file
            faults.append(f"{file}: {error}")
    if faults:
        shown = faults[:MAX_FAULTS_SHOWN]
        left = len(faults) - len(shown)
        raise SampleError("\n       ".join([*shown, *([f"and {left:,} more"] if left else [])]))
    if not rows:
        raise SampleError(f"{path} does not have any row: give one prompt a row")
    return rows


def check_suffix(path: Path, allowed: Sequence[str], what: str) -> None:
    """Raises ConfigError for a file of another kind, and where the package for workbooks is missing."""
    suffix = Path(path.stem).suffix if path.suffix in PACKED_SUFFIXES else path.suffix
    if suffix not in allowed or (suffix != path.suffix and suffix in (PARQUET, EXCEL)):
        raise ConfigError(f"{what} {path} ends with {path.suffix!r}: choose one of {', '.join(allowed)}")
    if path.suffix == EXCEL:
        try:
            import openpyxl  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{what} {path} is a workbook, for which the package openpyxl is missing: {install_command('excel')}"
            ) from error


def _rows_of(file: Path) -> Iterator[PromptRow | str]:
    """The rows of a file, and a text for each fault."""
    check_suffix(file, SUFFIXES, "input file")
    read = {PARQUET: _parquet_rows, EXCEL: _excel_rows}.get(file.suffix, read_objects)
    for item in read(file):
        if isinstance(item, Fault):
            yield str(item)
            continue
        number, values = item
        where = f"{file}: row {number}"
        if not isinstance(values, dict):
            yield f"{where} is {str(values)[:80]!r}: must be an object with the column prompt"
            continue
        try:
            yield _row(number, values, file.resolve().parent)
        except ValidationError as error:
            yield from (f"{where}: column {message}" for message in fault_messages(error))
        except SampleError as error:
            yield f"{where}: {error}"


def _row(number: int, values: dict[str, Any], folder: Path) -> PromptRow:
    if "state_file" in values:
        return _of_sample(number, Sample.model_validate(values), folder)
    _check_columns(values)
    plain = _PlainRow.model_validate(values)
    prompt = [message.model_dump(include={"role", "content"}) for message in plain.prompt]
    scored = values.get("reward_model")
    if isinstance(scored, dict) and isinstance(scored.get("ground_truth"), str):
        return _of_ground_truth(number, prompt, scored["ground_truth"])
    name = values.get("id")
    return PromptRow(
        number=number,
        prompt=prompt,
        id=None if name is None else str(name),
        better=plain.better,
        answer=plain.answer,
    )


def _check_columns(names: Iterable[str]) -> None:
    """Raises SampleError without the column that every row needs."""
    known = list(names)
    if "prompt" not in known:
        meant = did_you_mean("prompt", known)
        raise SampleError(f"column prompt is missing: {meant}the columns are {', '.join(known) or 'none'}")


def _of_sample(number: int, sample: Sample, folder: Path) -> PromptRow:
    has_stages = sample.observation is not None and "stages" in sample.observation  # else of another generator
    return PromptRow(
        number=number,
        prompt=[message.model_dump(include={"role", "content"}) for message in sample.prompt],
        id=sample.id,
        scenario=sample.scenario,
        junction_id=sample.junction_id,
        time_s=sample.time_s,
        prompt_version=sample.prompt_version,
        observation=Observation.from_dict(sample.observation) if has_stages else None,
        timing=sample.timing,
        outcomes=sample.outcomes.outcomes if sample.outcomes else None,
        better=sample.expert_decision,
        request=ReplayRequest.from_sample(sample, folder) if sample.sumo else None,
    )


def _of_ground_truth(number: int, prompt: list[dict[str, str]], text: str) -> PromptRow:
    """A row of json_to_parquet."""
    remedy = "convert the dataset again with json_to_parquet"
    try:
        truth = json.loads(text)
        request = ReplayRequest.from_json(truth["request"])
        label = SampleOutcomes.model_validate(truth["outcomes"]) if truth["outcomes"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise SampleError(f"column reward_model.ground_truth is not as json_to_parquet writes it: {remedy}") from error
    return PromptRow(
        number=number,
        prompt=prompt,
        id=request.sample_id,
        scenario=str(truth.get("scenario", "")),
        junction_id=request.junction_id,
        timing=request.timing,
        outcomes=label.outcomes if label else None,
        request=request,
    )


def _parquet_rows(file: Path) -> Iterator[tuple[int, object]]:
    try:
        with pq.ParquetFile(file) as table:
            _check_columns(table.schema_arrow.names)
            values = (row for batch in table.iter_batches(256) for row in batch.to_pylist())
            yield from enumerate(values)
    except (OSError, pa.ArrowInvalid) as error:
        raise SampleError(f"cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _excel_rows(file: Path) -> Iterator[tuple[int, object]]:
    """The rows of the first sheet that are not empty, by the names of the columns in its first row."""
    from zipfile import BadZipFile

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, BadZipFile, InvalidFileException) as error:
        raise SampleError(f"cannot be read as a workbook: {error}") from error
    try:
        cells = book.worksheets[0].iter_rows(values_only=True)
        names = [str(name).strip() if name is not None else "" for name in next(cells, ())]
        _check_columns(filter(None, names))
        for number, row in enumerate(cells, start=2):
            if any(cell is not None for cell in row):
                yield number, {name: cell for name, cell in zip(names, row, strict=False) if name}
    finally:
        book.close()
