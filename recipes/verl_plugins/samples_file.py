"""Writes some prompts of every step, with the model's answers and what they scored, for people to read.

The file samples.jsonl has a line for each prompt (JSON Lines):

    {"step": 3, "part": "train", "sample_id": "…", "prompt": "…", "outcomes": {"yes": 31.0, "no": 42.5},
     "answers": [{"text": "…", "score": 0.4, "traffic": 0.3, …}, …]}

part: train, or val for a validation. outcomes: the cost of each answer, in the unit of the measure (vehicle-seconds by
default), where the dataset holds it, else null. An answer has the parts that the reward function returned. A run that
is resumed appends to the file, so a step can be there twice; the later lines are those that count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transfer_queue
from transformers import AutoTokenizer

from reward.ground_truth import parse_ground_truth

# verl writes a key as PROMPT_ANSWER_SEQUENCE
_FIELDS = ["prompts", "responses", "rm_scores", "reward_model", "extra_fields"]


class SamplesFile:
    """path: of the file. num_prompts: of a step, with all their answers. tokenizer: the model's folder."""

    def __init__(self, *, path: str, num_prompts: int, tokenizer: str) -> None:
        self._path = Path(path)
        self._num_prompts = num_prompts
        self._folder = tokenizer
        self._tokenizer: Any = None

    def add(self, step: int, part: str, batch: Any) -> list[dict[str, Any]]:
        """Append some prompts of the batch, and return what was appended."""
        samples = self._samples(step, part, batch)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            # a kill may have left half a line
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(b"".join(json.dumps(sample).encode() + b"\n" for sample in samples))
        return samples

    def _samples(self, step: int, part: str, batch: Any) -> list[dict[str, Any]]:
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        chosen = sorted({prompt_of(key) for key in batch.keys})[: self._num_prompts]
        keys = sorted(key for key in batch.keys if prompt_of(key) in chosen)
        stored = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=_FIELDS)
        rows = [stored[name] for name in _FIELDS]
        samples: dict[str, dict[str, Any]] = {}
        for key, prompt, response, scores, reward_model, extra in zip(keys, *rows, strict=True):
            sample = samples.setdefault(
                prompt_of(key),
                {"step": step, "part": part, "prompt": self._text(prompt), **_truth(_plain(reward_model))},
            )
            parts = _plain(extra).get("reward_extra_info", {})
            numbers = {name: value for name, value in parts.items() if isinstance(value, int | float)}
            answer = {"text": self._text(response), **numbers, "score": float(scores.sum())}
            sample.setdefault("answers", []).append(answer)
        return list(samples.values())

    def _text(self, tokens: Any) -> str:
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()


def prompt_of(key: str) -> str:
    return key.split("_")[0]


def _plain(entry: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(entry, "data", entry)
    return found


def _truth(reward_model: Mapping[str, Any]) -> dict[str, Any]:
    truth = parse_ground_truth(reward_model["ground_truth"])
    costs = {"yes": truth.outcomes.yes, "no": truth.outcomes.no} if truth.outcomes else None
    return {"sample_id": truth.request.sample_id, "outcomes": costs}


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")
