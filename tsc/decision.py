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


class _DuplicateKey(ValueError):
    pass


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys; {"extend": "yes", "extend": "no"} says both and so says nothing
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise _DuplicateKey
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates)


def _decision_of(value: object) -> Decision | None:
    if isinstance(value, dict) and list(value) == ["extend"]:
        extend = value["extend"]
        if extend in ("yes", "no"):
            return Decision(extend)
    return None


def _objects_in(text: str) -> list[tuple[object, str]]:
    """The top-level JSON objects in `text`, each with its own text; one that does not parse counts as an empty one."""
    found: list[tuple[object, str]] = []
    start = text.find("{")
    while start != -1:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            value, end = {}, start + 1
        found.append((value, text[start:end]))
        start = text.find("{", end)
    return found


def parse_answer(text: str) -> Answer:
    """Read a model's answer. Never raises: what a model says is data.

    Only the text after the last `</think>` counts. Exactly one JSON object with the one key `extend` and the value
    "yes" or "no" is EXACT; the same with other text around it is EMBEDDED; everything else is INVALID.
    """
    answer_text = text.rpartition("</think>")[2].strip()
    objects = _objects_in(answer_text[-_MAX_CHARS_READ:])
    if len(objects) != 1:
        return INVALID_ANSWER
    value, value_text = objects[0]
    decision = _decision_of(value)
    if decision is None:
        return INVALID_ANSWER
    return Answer(decision=decision, form=AnswerForm.EXACT if value_text == answer_text else AnswerForm.EMBEDDED)
