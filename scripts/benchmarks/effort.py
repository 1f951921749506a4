"""How much a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The numbers of repetitions, replays, scores, steps and episodes.

    repetitions: of each side of a comparison, in turn; short_repetitions: the same where a side takes a second or two.
    …_replays, scores, …_episodes: of one repetition.
    episodes: simulated hours from which the states are taken. steps: of GRPO, without the first, which is not counted;
    speed_steps: the same for each of step_trainings trainings of both sides.
    episode_s: simulated time of an evaluation's episode. label_s: of an episode that is labelled, except four_way's
    hour; label_repetitions: of each side.
    parquet_samples: that are converted; memory_samples: once, to see the memory.
    """

    episodes: int = 5
    repetitions: int = 5
    short_repetitions: int = 15
    live_replays: int = 40
    traci_replays: int = 2
    city_replays: int = 6
    memory_replays: int = 10_000
    scores: int = 40_000
    step_prompts: int = 128
    steps: int = 12
    step_trainings: int = 2
    speed_steps: int = 4
    episode_s: int = 3600
    worker_episodes: int = 48
    model_episodes: int = 16
    smollm2_episodes: int = 16
    smollm2_episode_s: int = 50
    smollm2_repetitions: int = 3
    label_s: int = 900
    label_repetitions: int = 3
    parquet_samples: int = 100_000
    memory_samples: int = 1_000_000


FULL = Effort()

# shows that everything runs; its numbers are not a result
QUICK = Effort(
    episodes=1,
    repetitions=3,
    short_repetitions=3,
    live_replays=10,
    traci_replays=1,
    city_replays=2,
    memory_replays=500,
    scores=8_000,
    step_prompts=16,
    steps=4,
    step_trainings=1,
    speed_steps=2,
    episode_s=600,
    worker_episodes=8,
    model_episodes=4,
    smollm2_episodes=2,
    smollm2_episode_s=25,
    smollm2_repetitions=1,
    label_s=600,
    label_repetitions=1,
    parquet_samples=20_000,
    memory_samples=40_000,
)
