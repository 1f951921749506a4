"""What verl's logger for wandb lacks: an end without a traceback, and a table of samples at each validation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

from verl.utils.tracking import Tracking

COLUMNS = ("step", "sample", "prompt", "cost of yes", "cost of no", "answer", "score")


def end_wandb_with_the_training() -> None:
    """Let wandb's service end when the trackers finish. wandb itself waits until the process exits. By then, Ray has
    killed the service as a child of its worker, and a successful log ends in a traceback (ConnectionResetError)."""
    finish = Tracking.finish

    @wraps(finish)
    def finish_all(self: Any, exit_code: int = 0) -> None:
        uses_wandb = not self._finished and "wandb" in self.logger
        finish(self, exit_code)
        if uses_wandb:
            self.logger["wandb"].teardown(exit_code)

    Tracking.finish = finish_all


def log_samples(step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """A table of the samples (samples_file.py), a row for each answer, if this process logs to wandb."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    rows = []
    for sample in samples:
        costs = sample["outcomes"] or {"yes": None, "no": None}
        known = (step, sample["sample_id"], sample["prompt"], costs["yes"], costs["no"])
        rows += [[*known, answer["text"], answer["score"]] for answer in sample["answers"]]
    # verl logs the metrics of the same step later
    wandb.log({"val/samples": wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)
