"""verl's reward function in the benchmark of a GRPO step: compute_score, with labels in one step and live in the next.

Each call appends to a file when the answer arrived and when its reward was ready. The version of the model's weights,
which verl passes on, identifies the step.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

from reward.compute_score import compute_score

LIVE, CACHED = "live", "cached"


def mode_of_step(weights_version: int) -> str:
    """Whether a step is live or cached. The first step (version 0) is live, so it starts the replay workers for the
    steps that count."""
    return LIVE if weights_version % 2 == 0 else CACHED


@lru_cache(maxsize=16384)
def without_label(ground_truth: str) -> str:
    """The ground truth without outcomes, so that the state is replayed."""
    truth = json.loads(ground_truth)
    truth.pop("outcomes", None)
    return json.dumps(truth, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4)
def _log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """As many threads as verl would use to call compute_score (asyncio's default). They are our own, so that the time
    in their queue is measured, too."""
    return ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4))


async def timed_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    *,
    log: str,
    **kwargs: Any,
) -> dict[str, float]:
    """The score of compute_score. log: a file that gets one line of JSON per call."""
    arrived_s = time.monotonic()  # the same clock in all processes
    version = int(extra_info["min_global_steps"])
    truth = ground_truth if mode_of_step(version) == CACHED else without_label(ground_truth)
    score = await asyncio.get_running_loop().run_in_executor(
        _threads(), partial(compute_score, data_source, solution_str, truth, extra_info, **kwargs)
    )
    line = {"version": version, "arrived_s": arrived_s, "done_s": time.monotonic()}
    os.write(_log(log), (json.dumps(line) + "\n").encode())
    return score
