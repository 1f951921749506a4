"""The samples that a training kept (recipes/verl_plugins/samples_file.py), of any step."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.monitor.appended_lines import AppendedLines
from tsc.junction.decision import parse_answer

_BEGINNING = re.compile(rb'\{"step": (\d+), "part": "(\w+)"')

# A wrong answer is costly where its traffic part is this much below 0.
COSTLY_SHARE = 0.5
FILTERS = ("all", "right", "wrong", "costly", "tie", "invalid")


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """count: how many of the prompt's answers had this text. parts: of the reward, without the score.

    verdicts: those of FILTERS that fit; only "all" where the reward function does not compare the answers.
    """

    text: str
    count: int
    score: float
    parts: dict[str, float]
    verdicts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """outcomes: cost of either answer; None where the dataset does not hold it. answers: those that the filter let
    through, the same text once."""

    step: int
    part: str
    sample_id: str
    prompt: str
    outcomes: dict[str, float] | None
    answers: list[ShownAnswer]


class Samples:
    """Knows where the samples of each step lie in the file. num_broken: lines that are none of ours."""

    def __init__(self) -> None:
        self._lines: AppendedLines | None = None
        self._places: dict[tuple[int, str], int] = {}
        self._newest: tuple[int, str] | None = None
        self.num_broken = 0

    def update(self, path: Path) -> None:
        """Look what was added to the file."""
        if self._lines is None:
            self._lines = AppendedLines(path)
        for start, line in self._lines.new():
            key = _key(line)
            if key is None:
                self.num_broken += line != b"\n"
            elif key != self._newest:
                # a resumed run repeats steps: the later ones count
                self._places[key] = start
                self._newest = key

    @property
    def steps(self) -> list[int]:
        """In their order, each once."""
        return sorted({step for step, _ in self._places})

    def of(self, step: int, wanted: str = "all") -> list[ShownSample]:
        """The samples of a step with an answer that the filter lets through."""
        found = []
        for part in ("train", "val"):
            start = self._places.get((step, part))
            if start is None or self._lines is None:
                continue
            with self._lines.path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n") or _key(line) not in (None, (step, part)):
                        break
                    sample = _shown(line, wanted)
                    if sample is not None:
                        found.append(sample)
        return found


def verdicts(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of FILTERS that fit an answer with its parts of the reward (reward.scoring)."""
    if parse_answer(answer["text"]).decision is None:
        return "all", "invalid"
    traffic = answer.get("traffic")
    if traffic is None:
        return ("all",)
    if traffic < 0:
        return ("all", "wrong", "costly") if traffic <= -COSTLY_SHARE else ("all", "wrong")
    return ("all", "right") if traffic > 0 else ("all", "tie")


def _key(line: bytes) -> tuple[int, str] | None:
    found = _BEGINNING.match(line)
    return (int(found[1]), found[2].decode()) if found else None


def _shown(line: bytes, wanted: str) -> ShownSample | None:
    """None if no answer is wanted, and for a broken line."""
    try:
        sample = json.loads(line)
        answers = sample["answers"]
        counts = Counter(answer["text"] for answer in answers)
        shown = [
            ShownAnswer(
                text=text,
                count=counts[text],
                score=answer["score"],
                parts={name: value for name, value in answer.items() if name not in ("text", "score")},
                verdicts=verdicts(answer),
            )
            for text, answer in {answer["text"]: answer for answer in answers}.items()
        ]
        kept = [answer for answer in shown if wanted in answer.verdicts]
        if not kept:
            return None
        names = ("step", "part", "sample_id", "prompt", "outcomes")
        return ShownSample(**{name: sample[name] for name in names}, answers=kept)
    except (ValueError, KeyError, TypeError):
        return None
