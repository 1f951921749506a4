"""verl's replay buffer with a short poll and the parts of the reward among the step's metrics.

verl's plug-in point is trainer.v1.sampler.custom_sampler. The V1 trainer merges the metrics that `sample` returns with
the batch into those of the step (verl/trainer/ppo/v1/trainer_base.py:_step_once). Without this module verl reports the
keys that compute_score returns at validation only.

Without it verl also continues when a reward fails: the answer is missing from its group, and only the log says so. With
it the run ends.

verl gives algorithm.filter_groups to its own replay buffer only; for a custom one the key would silently do nothing. So
recipes/policy_gradient.yaml hands it on in sampler_kwargs. Its bound, which verl's V1 trainer ignores, holds here.

It is also the place where all answers of a step pass by with their scores, so it keeps some of them (samples_file.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from recipes.verl_plugins.samples_file import SamplesFile
from recipes.verl_plugins.wandb_extras import end_wandb_with_the_training, log_samples
from reward.workers.pool import replays_under_way
from tsc.errors import ReplayError

# this module is loaded where the trainer and its trackers are
end_wandb_with_the_training()

# Events that should be rare are counted; everything else is averaged over the batch.
COUNTED_PARTS = ("audited", "audit_disagreed", "failed")

# The log names so many of the replays that a step waits for.
NUM_REPLAYS_TOLD = 3

# A policy that gives one answer in more than this share of its readable answers is one-sided. In a data set where one
# answer is better in two of three states, a policy gains by that at once, and soon has no two answers to compare.
ONE_SIDED_SHARE = 0.95


def reward_part_metrics(parts_by_answer: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """`reward/<part>/mean`, or `reward/<part>/sum` for COUNTED_PARTS, over the answers of one batch.

    A part counts if it is a number and all answers have it. A reward function of a user may return others, or none.
    """
    answers = list(parts_by_answer)
    if not answers:
        return {}
    metrics: dict[str, float] = {}
    for part in answers[0]:
        if not all(isinstance(answer.get(part), int | float) for answer in answers):
            continue
        total = sum(float(answer[part]) for answer in answers)
        if part in COUNTED_PARTS:
            metrics[f"reward/{part}/sum"] = total
        else:
            metrics[f"reward/{part}/mean"] = total / len(answers)
    return metrics


def is_one_sided(parts_by_answer: Iterable[Mapping[str, float]]) -> bool:
    """Whether more than ONE_SIDED_SHARE of the readable answers say the same; False if none is readable, and where a
    reward function of a user does not say what was answered."""
    answers = list(parts_by_answer)
    num_yes = sum(answer.get("answer_yes", 0.0) for answer in answers)
    num_no = sum(answer.get("answer_no", 0.0) for answer in answers)
    return max(num_yes, num_no) > ONE_SIDED_SHARE * (num_yes + num_no)


class FastReplayBuffer(ReplayBuffer):
    """Polls every 0.1 s instead of verl's 2 s, which is longer than a whole step of a small model.

    sampler_kwargs: `filter_groups` and `train_batch_size`, as algorithm.filter_groups and data.train_batch_size, and
    `samples`, the arguments of SamplesFile. With filter_groups.enable, groups whose answers all have the same
    filter_groups.metric are replaced, as in DAPO. A step that has thrown away filter_groups.max_num_gen_batches batches
    of them (0: no bound) raises ReplayError.

    It reports the parts of the reward and `reward/one_sided_steps`: how many steps in a row, including this one, were
    one-sided. The count starts again with the process.
    """

    def __init__(
        self, *args: Any, sampler_kwargs: Mapping[str, Any], poll_interval: float = 0.1, **kwargs: Any
    ) -> None:
        filter_groups = sampler_kwargs["filter_groups"]
        filtering: dict[str, Any] = {}
        if filter_groups["enable"]:
            filtering = {
                "filter_groups_metric": filter_groups["metric"],
                "train_batch_size": sampler_kwargs["train_batch_size"],
                # the trainer fetches prompts one by one if groups are filtered (trainer_base.py:_init_dataloader)
                "gen_batch_size": 1,
                "max_inflight_gen_batches": filter_groups["max_inflight_gen_batches"],
            }
        super().__init__(*args, sampler_kwargs=sampler_kwargs, poll_interval=poll_interval, **filtering, **kwargs)
        self._most_filtered = filter_groups["max_num_gen_batches"] * sampler_kwargs["train_batch_size"]
        self._num_filtered = 0
        self._one_sided_steps = 0
        self._said = ""
        self._samples = SamplesFile(**sampler_kwargs["samples"]) if sampler_kwargs["samples"]["num_prompts"] else None

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        num_failed = len(self.failure_keys["train"])
        if num_failed:
            raise ReplayError(
                f"the answers to {num_failed} prompts could not all be generated and scored; the errors of the agent "
            )

    def _evict_terminal_groups(self, *args: Any, **kwargs: Any) -> tuple[set[str], int, int, dict[str, Any]]:
        evicted = super()._evict_terminal_groups(*args, **kwargs)
        self._num_filtered += evicted[2]
        if self._most_filtered and self._num_filtered >= self._most_filtered:
            raise ReplayError(
                f"all answers to {self._num_filtered} prompts of a step had the same {self.filter_groups_metric}: "
                "there is nothing to learn. Start from a model that gives both answers, or with more KL, a higher "
                "TEMPERATURE or FILTER_GROUPS=False (the bound: algorithm.filter_groups.max_num_gen_batches)"
            )
        return evicted

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        self._num_filtered = 0
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        # the answers of a group side by side, for an engine that merges those that are equal (answer_engine.py)
        batch.reorder(sorted(range(len(batch.keys)), key=batch.keys.__getitem__))
        if partition_id == "train":
            metrics.update(self._reward_metrics(_reward_parts(batch)))
        if self._samples is not None:
            samples = self._samples.add(global_steps, partition_id, batch)
            if partition_id == "val":
                log_samples(global_steps, samples)
        return batch, metrics

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """Once a minute, say what a step still waits for; nothing where nothing has changed, so that the launch ends a
        run that hangs (recipes/running/supervise.py)."""
        looked_s: float = super()._wait_for_next_poll(partition_id, last_debug_time)
        if looked_s != last_debug_time:
            not_begun, begun, done = (
                len(keys[partition_id]) for keys in (self.pending_keys, self.running_keys, self.finished_keys)
            )
            text = (
                f"waiting for the answers to {not_begun + begun} of {not_begun + begun + done} prompts: {begun} are "
                f"being answered or replayed, {not_begun} have not begun"
            )
            if text != self._said:
                oldest = replays_under_way()[:NUM_REPLAYS_TOLD]
                told = "; oldest replays: " if oldest else ""
                print(text + told + ", ".join(f"{state} for {age_s:.0f} s" for age_s, state in oldest), flush=True)
                self._said = text
        return looked_s

    def _reward_metrics(self, parts_by_answer: Sequence[Mapping[str, float]]) -> dict[str, float]:
        self._one_sided_steps = self._one_sided_steps + 1 if is_one_sided(parts_by_answer) else 0
        return {**reward_part_metrics(parts_by_answer), "reward/one_sided_steps": float(self._one_sided_steps)}


def _reward_parts(batch: Any) -> list[Mapping[str, float]]:
    """The parts that compute_score returned for every answer of the batch, as the agent loop stored them."""
    stored = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    extra_fields = (getattr(entry, "data", entry) for entry in stored["extra_fields"])
    return [fields["reward_extra_info"] for fields in extra_fields if "reward_extra_info" in fields]
