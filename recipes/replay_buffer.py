"""verl's replay buffer with a short poll and the parts of the reward among the step's metrics.

verl's plug-in point is trainer.v1.sampler.custom_sampler. The V1 trainer merges what `sample` returns beside the batch
into the metrics of the step (verl/trainer/ppo/v1/trainer_base.py:_step_once); by itself verl reports the keys that
compute_score returns at validation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

# Events that should be rare are counted; everything else is averaged over the batch.
COUNTED_PARTS = ("audited", "audit_disagreed", "failed")


def reward_part_metrics(parts_by_answer: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """`reward/<part>/mean`, or `reward/<part>/sum` for COUNTED_PARTS, over the answers of one batch."""
    answers = list(parts_by_answer)
    if not answers:
        return {}
    metrics: dict[str, float] = {}
    for part in answers[0]:
        total = sum(float(answer[part]) for answer in answers)
        if part in COUNTED_PARTS:
            metrics[f"reward/{part}/sum"] = total
        else:
            metrics[f"reward/{part}/mean"] = total / len(answers)
    return metrics


class FastReplayBuffer(ReplayBuffer):
    """Polls every 0.1 s instead of verl's 2 s, which is longer than a whole step of a small model."""

    def __init__(self, *args: Any, poll_interval: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, poll_interval=poll_interval, **kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "train":
            metrics.update(reward_part_metrics(_reward_parts(batch)))
        return batch, metrics


def _reward_parts(batch: Any) -> list[Mapping[str, float]]:
    """What compute_score returned for every answer of the batch, as the agent loop stored it."""
    stored = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    extra_fields = (getattr(entry, "data", entry) for entry in stored["extra_fields"])
    return [fields["reward_extra_info"] for fields in extra_fields if "reward_extra_info" in fields]
