"""Stretches of decisions, played in the replay workers of the machine and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward.ground_truth import GroundTruth
from reward.origin import Origin
from reward.outcome_cache import OutcomeCache
from reward.settings import RewardSettings
from reward.stretch_scoring import score_stretch
from reward.workers.pool import ReplayPool
from tsc.junction.decision import Answer
from tsc.junction.prompt import OWN_PROMPT
from tsc.replays.stretch import Stretch, StretchProgress

FUNCTION = "tsc.replays.stretch_replay:play"

# some 1 kB each, and a batch asks for a few thousand at most
_NUM_KEPT = 20_000


@dataclass(frozen=True, kw_only=True)
class ProgressWithOrigin:
    progress: StretchProgress
    origin: Origin


class StretchSource:
    """A client of the machine's replay workers (reward.workers.pool), which all stretches share with all replays. Safe
    from many threads. What it returns depends neither on the order of the calls nor on the worker.

    Nothing runs between two calls, so a stretch may simply be abandoned.
    """

    def __init__(self, settings: RewardSettings, num_decisions: int, prompt: str = OWN_PROMPT) -> None:
        """num_decisions: decisions of the policy, 1 to tsc.replays.stretch.MAX_DECISIONS. prompt: the name of what
        makes the prompts (tsc.junction.prompt)."""
        self._settings = settings
        self._num_decisions = num_decisions
        self._prompt = prompt
        self._pool = ReplayPool(settings.replay)
        self._kept: OutcomeCache[StretchProgress] = OutcomeCache(max_entries=_NUM_KEPT)

    def play(self, truth: GroundTruth, answers: Sequence[Answer]) -> ProgressWithOrigin:
        """Continue the state with the answers so far. In place of an unreadable one, the net's own plan decides.

        Raises ReplayError, StateError and other TscErrors, which name the state, the junction and the cause.
        """
        outcome_settings = self._settings.outcome_settings(truth.scenario)
        decisions = [answer.decision.value if answer.decision else None for answer in answers]
        arguments = {"decisions": decisions, "num_decisions": self._num_decisions, "prompt": self._prompt}
        num_failed_attempts: list[int] = []

        def play() -> StretchProgress:
            values, num_failed = self._pool.run(FUNCTION, truth.request, outcome_settings, arguments)
            num_failed_attempts.append(num_failed)
            return StretchProgress.from_dict(values)

        key = f"{truth.digest(outcome_settings)} {' '.join(map(str, decisions))}"
        progress = self._kept.get_or_compute(key, play)
        origin = Origin.of_replay(was_kept=not num_failed_attempts, failed=any(num_failed_attempts))
        return ProgressWithOrigin(progress=progress, origin=origin)

    def score(self, answers: Sequence[Answer], stretch: Stretch, origin: Origin) -> dict[str, float]:
        """The keys of reward.compute_score, and num_decisions: the same for every input. A stretch has no label, so the
        parts about labels and their audit are 0."""
        score = score_stretch(answers, stretch, self._settings).as_dict()
        return {**score, "num_decisions": float(stretch.num_decisions), **origin.as_dict()}

    @property
    def counts(self) -> dict[str, int]:
        """See reward.workers.pool.ReplayPool.counts."""
        return self._pool.counts

    def worker_pids(self) -> list[int]:
        return self._pool.worker_pids()

    def close(self) -> None:
        self._pool.close()
