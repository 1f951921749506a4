"""How much a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The numbers of repetitions, replays, scores, steps and episodes.

    repetitions: of each side of a comparison, in turn. …_replays, scores, …_episodes: of one repetition.
    episodes: simulated hours from which the states are taken. steps: of GRPO, without the first, which is not counted.
    episode_s: simulated time of an evaluation's episode.
    """

    episodes: int
    repetitions: int
    live_replays: int
    traci_replays: int
    city_replays: int
    memory_replays: int
    scores: int
    step_prompts: int
    steps: int
    episode_s: int
    worker_episodes: int
    model_episodes: int
    smollm2_episodes: int
    smollm2_episode_s: int
    smollm2_repetitions: int


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
    episode_s=3600,
    worker_episodes=48,
    model_episodes=16,
    smollm2_episodes=16,
    smollm2_episode_s=150,
    smollm2_repetitions=3,
)

# shows that everything runs; its numbers are not a result
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
    episode_s=600,
    worker_episodes=8,
    model_episodes=4,
    smollm2_episodes=2,
    smollm2_episode_s=100,
    smollm2_repetitions=1,
)
