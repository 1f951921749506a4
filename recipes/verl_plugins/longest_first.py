"""verl's datasets with the longest prompt in the first pass of the first step, where a lack of memory shows at once.

A pass pads all its sequences to the longest, so this one row decides how much memory the step takes. It changes places
with the row that would have come first. All others stay where verl's shuffling puts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset

Chat = Sequence[dict[str, Any]]


def swapped_rows(chats: Sequence[Chat], first: int) -> dict[int, int]:
    """Which row stands at which index: the longest chat, by its characters, at `first`, and that one in its place."""
    lengths = [sum(len(str(message["content"])) for message in chat) for chat in chats]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    return {first: longest, longest: first}


def first_of_shuffled(rows: int, seed: int) -> int:
    """The index that torch's RandomSampler, or DistributedSampler in its first epoch, draws first with this seed."""
    return int(torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[0])


class _LongestFirst:
    _place: dict[int, int]

    def __getitem__(self, item: int) -> Any:
        return super().__getitem__(self._place.get(item, item))  # type: ignore[misc]  # verl's dataset has it


class LongestFirstRLDataset(_LongestFirst, RLHFDataset):  # type: ignore[misc]  # verl has no types
    """Set as data.custom_cls in recipes/policy_gradient.yaml."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # without a seed, verl's order is another in every launch
        first = 0
        if self.config.get("shuffle") and self.config.get("seed") is not None:
            first = first_of_shuffled(len(self.dataframe), self.config.seed)
        self._place = swapped_rows(self.dataframe[self.prompt_key], first)


class LongestFirstSFTDataset(_LongestFirst, MultiTurnSFTDataset):  # type: ignore[misc]  # verl has no types
    """Set as data.custom_cls in recipes/sft.yaml."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the trainer's DistributedSampler has seed 0
        self._place = swapped_rows(self.messages, first_of_shuffled(len(self.messages), 0))
