"""The two answers to "should the current green be extended?", and how an answer is read from text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Decision(StrEnum):
    """YES extends the current green by green_extension_s; NO ends it."""

    YES = "yes"
    NO = "no"

    @property
    def answer(self) -> str:
        """The canonical answer, `{"extend": "yes"}` or `{"extend": "no"}`."""
        return json.dumps({"extend": self.value})

    @property
    def other(self) -> Decision:
        return Decision.NO if self is Decision.YES else Decision.YES


class AnswerForm(StrEnum):
    """How well an answer keeps to the format."""

    EXACT = "exact"  # one JSON object and nothing else but white space
    EMBEDDED = "embedded"  # one such object with other text around it
    INVALID = "invalid"  # no such object, several, or another key or value


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model's text says. `decision` is None exactly when `form` is INVALID."""

    decision: Decision | None
    form: AnswerForm


INVALID_ANSWER = Answer(decision=None, form=AnswerForm.INVALID)

# An answer has some ten tokens. A longer text is read from its end, so that a runaway response costs no time.
_MAX_CHARS_READ = 4096


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys; {"extend": "yes", "extend": "no"} says both and so says nothing
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key is given twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates)


def parse_answer(text: str) -> Answer:
    """Read a model's answer, in a time that the last 4096 characters bound. No text raises: what a model says is data.
    Anything but a text is a fault of the caller and raises TypeError.

    Only the text after the last `</think>` counts. Exactly one JSON object with the one key `extend` and the value
    "yes" or "no" is EXACT; the same with other text around it, which must not open another object, is EMBEDDED;
    everything else is INVALID.
    """
    if not isinstance(text, str):
        raise TypeError(f"the answer is of type {type(text).__name__}: must be the decoded text")
    answer_text = text.rpartition("</think>")[2].strip()
    read_text = answer_text[-_MAX_CHARS_READ:]
    start = read_text.find("{")
    if start == -1:
        return INVALID_ANSWER
    try:
        value, end = _DECODER.raw_decode(read_text, start)
    except (ValueError, RecursionError):
        return INVALID_ANSWER
    decision = next((each for each in Decision if value == {"extend": each.value}), None)
    if decision is None or "{" in read_text[end:]:
        return INVALID_ANSWER
    is_all = read_text[start:end] == answer_text
    return Answer(decision=decision, form=AnswerForm.EXACT if is_all else AnswerForm.EMBEDDED)
