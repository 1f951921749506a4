"""verl's reward function in the benchmark of a GRPO step: compute_score, on labels in one step and live in the next.

Each call appends when it began and ended to a file. A step is told by the version of the model's weights that gave the
answer, which verl passes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reward.compute_score import compute_score

LIVE, CACHED = "live", "cached"


def mode_of_step(weights_version: int) -> str:
    """The first step has version 0. It is live, and so starts the replay workers for the steps that count."""
    return LIVE if weights_version % 2 == 0 else CACHED


@lru_cache(maxsize=16384)
def without_label(ground_truth: str) -> str:
    """As of a dataset without outcomes: the state is then replayed."""
    truth = json.loads(ground_truth)
    truth.pop("outcomes", None)
    return json.dumps(truth, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4)
def _log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def timed_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    *,
    log: str,
    **kwargs: Any,
) -> dict[str, float]:
    """compute_score's. log: file for one line of JSON a call."""
    version = int(extra_info["min_global_steps"])
    mode = mode_of_step(version)
    truth = ground_truth if mode == CACHED else without_label(ground_truth)
    begin_s = time.monotonic()  # the same clock in all processes
    score = compute_score(data_source, solution_str, truth, extra_info, **kwargs)
    line = {"version": version, "mode": mode, "begin_s": begin_s, "end_s": time.monotonic()}
    os.write(_log(log), (json.dumps(line) + "\n").encode())
    return score
