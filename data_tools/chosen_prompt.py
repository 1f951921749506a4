"""One decision that a model is to be asked for: a sample of a dataset, a prompt, or the numbers of a junction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data_tools.prompt_rows import PromptRow
from tsc.errors import SampleError, did_you_mean
from tsc.junction.observation import Observation
from tsc.junction.prompt import prompt_maker, prompt_version
from tsc.junction.timing import Timing

MAX_TIMES_SHOWN = 10


def row_of_sample(rows: Sequence[PromptRow], number: int) -> PromptRow:
    """Raises SampleError if there is no such sample."""
    if not 0 <= number < len(rows):
        raise SampleError(f"sample {number} does not exist: choose 0 to {len(rows) - 1}")
    return rows[number]


def row_at(rows: Sequence[PromptRow], junction_id: str, time_s: float) -> PromptRow:
    """The first sample of the junction at this second. Raises SampleError that names the nearest, if there is none."""
    of_junction = [row for row in rows if row.junction_id == junction_id and row.time_s is not None]
    if not of_junction:
        known = sorted({row.junction_id for row in rows if row.junction_id is not None})
        raise SampleError(
            f"no sample is of junction {junction_id!r}: {did_you_mean(junction_id, known)}choose from "
            f"{', '.join(known) or 'none'}"
        )
    for row in of_junction:
        if row.time_s == time_s:
            return row
    nearest = sorted({row.time_s or 0.0 for row in of_junction}, key=lambda other: abs(other - time_s))
    shown = ", ".join(f"{other:g}" for other in sorted(nearest[:MAX_TIMES_SHOWN]))
    raise SampleError(f"junction {junction_id!r} has no sample at {time_s:g} s: the nearest are at {shown} s")


def row_of_prompt(file: Path) -> PromptRow:
    """A file's text as the user's message. Raises SampleError if it cannot be read or is empty."""
    text = _text_of(file)
    if not text.strip():
        raise SampleError(f"{file} is empty: write the prompt into it")
    return PromptRow(number=0, prompt=[{"role": "user", "content": text.strip()}])


def row_of_observation(file: Path, prompt: str) -> PromptRow:
    """The numbers of a junction as JSON (tsc.junction.observation.Observation), made a prompt by the prompt maker.

    Raises SampleError that names the wrong field.
    """
    try:
        values = json.loads(_text_of(file))
    except ValueError as error:
        raise SampleError(f"{file} is not JSON: {error}") from error
    try:
        observation = Observation.from_dict(values)
        if not observation.stages:
            raise SampleError("observation.stages is empty: give the current stage first, then the others")
    except SampleError as error:
        raise SampleError(f"{file}: {error}") from error
    timing = Timing(
        min_green_s=observation.min_green_s,
        max_green_s=observation.max_green_s,
        green_extension_s=observation.green_extension_s,
    )
    return PromptRow(
        number=0,
        prompt=prompt_maker(prompt)(observation),
        junction_id=observation.junction_id,
        prompt_version=prompt_version(prompt),
        observation=observation,
        timing=timing,
    )


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
