"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """repetitions: of each side of a comparison, in turn; the …_replays and scores are those of one repetition.
    episodes: simulated hours that the states come from. steps: of GRPO, after a first that does not count."""

    episodes: int
    repetitions: int
    live_replays: int
    traci_replays: int
    city_replays: int
    memory_replays: int
    scores: int
    step_prompts: int
    steps: int


FULL = Effort(
    episodes=5,
    repetitions=7,
    live_replays=40,
    traci_replays=2,
    city_replays=6,
    memory_replays=10_000,
    scores=40_000,
    step_prompts=128,
    steps=12,
)

# to see that everything runs; its figures are no result
QUICK = Effort(
    episodes=1,
    repetitions=3,
    live_replays=10,
    traci_replays=1,
    city_replays=2,
    memory_replays=500,
    scores=8_000,
    step_prompts=16,
    steps=4,
)
