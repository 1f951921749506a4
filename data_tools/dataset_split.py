"""Decides which samples train and which validate, without leakage.

Neighbouring decisions are nearly copies of each other, so a split by row would validate on trained samples. A group is
one time block of one episode of one scenario. Groups that share a saved state are joined. A group is never split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tsc.errors import SampleError
from tsc.replays.sample import Sample

Group = tuple[str, str, int]
"""(scenario, episode, time block). The block is -1 if the time is unknown, so that the episode stays whole."""

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """What a split needs to know about a sample.

    episode: the name that `episode_key` gives.
    state: the name or the number of the saved state, which all samples of that state share.
    side: `train` or `val` if the dataset has chosen already, else None.
    """

    scenario: str
    episode: str
    time_s: float | None
    state: str | int
    side: str | None = None

    def group(self, block_s: float) -> Group:
        return (self.scenario, self.episode, -1 if self.time_s is None else int(self.time_s // block_s))


def episode_key(sample: Sample) -> str:
    """Return a name of the simulation run that a sample comes from: episode number, seed and demand.

    The number is not enough, because numbers may start again for validation or in another dataset.
    """
    if sample.sumo is None:
        return str(sample.episode)
    demand = sample.sumo.route_sha256 if sample.sumo.route_sha256 is not None else sample.sumo.route_files
    digest = hashlib.sha256(repr(demand).encode()).hexdigest()
    return f"{sample.episode} (seed {sample.sumo.seed}, demand {digest[:8]})"


def joined_groups(samples: Iterable[Placed], block_s: float) -> list[Group]:
    """Return the group of each sample, in order. Groups that share a state get the name of the smallest of them."""
    parent: dict[Group, Group] = {}
    group_of_state: dict[str | int, Group] = {}
    kept_once: dict[Group, Group] = {}

    def root(group: Group) -> Group:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    own = []
    for sample in samples:
        group = sample.group(block_s)
        group = kept_once.setdefault(group, group)
        parent.setdefault(group, group)
        own.append(group)
        first, second = sorted((root(group_of_state.setdefault(sample.state, group)), root(group)))
        parent[second] = first
    return [root(group) for group in own]


def chosen_groups(groups: Iterable[Group], fraction: float, *, seed: int, purpose: str) -> set[Group]:
    """Draw round(fraction · number of groups) of the groups, by a hash of seed, purpose and group.

    Draws at least one if fraction > 0, and not all if fraction < 1 and there are two or more.
    """
    unique = set(groups)
    number = round(fraction * len(unique))
    if fraction > 0:
        number = max(number, 1)
    if fraction < 1 and len(unique) > 1:
        number = min(number, len(unique) - 1)
    ranked = sorted(unique, key=lambda group: hashlib.sha256(repr((seed, purpose, group)).encode()).digest())
    return set(ranked[:number])


def split(
    samples: Iterable[Placed], groups: Sequence[Group], *, val_fraction: float, seed: int, block_s: float
) -> list[str]:
    """Return `train` or `val` for each sample. `groups` comes from joined_groups of the same samples.

    A group that the dataset has placed stays where it is, and the others are drawn. Raises SampleError if the dataset
    itself has one group on both sides, or if validation is wanted and one side would be empty.
    """
    side_of: dict[Group, str] = {}
    for sample, group in zip(samples, groups, strict=True):
        if sample.side is not None and side_of.setdefault(group, sample.side) != sample.side:
            scenario, episode, block = group
            when = "the whole episode" if block < 0 else f"{block * block_s:g} to {(block + 1) * block_s:g} s"
            raise SampleError(
                f"the dataset's own `split` puts one group on both sides (scenario {scenario}, episode {episode}, "
                f"{when}): pass --resplit to split by time block instead, or a smaller --block-s"
            )
    placed_by_dataset = bool(side_of)
    free = [group for group in dict.fromkeys(groups) if group not in side_of]
    val = chosen_groups(free, val_fraction, seed=seed, purpose=VAL)
    side_of.update((group, VAL if group in val else TRAIN) for group in free)
    sides = [side_of[group] for group in groups]
    missing = {TRAIN, VAL} - set(sides)
    if sides and val_fraction > 0 and missing:
        remedy = (
            "pass --resplit to ignore the dataset's own `split`"
            if placed_by_dataset
            else f"choose a smaller --block-s than {block_s:g}, generate more episodes"
        )
        raise SampleError(
            f"nothing is left for {' and '.join(sorted(missing))}: the samples form {len(set(groups))} group(s), which "
            f"must stay whole: {remedy}, or pass --val-fraction 0 to train without validation"
        )
    return sides
