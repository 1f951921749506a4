"""Where the outcomes of a decision point come from: its sample, the cache, or a replay. Labels are audited here."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass

from reward.ground_truth import GroundTruth
from reward.origin import Origin
from reward.outcome_cache import OutcomeCache
from reward.outcome_store import OutcomeStore
from reward.settings import CacheSection, ReplaySection, RewardSettings
from reward.workers.pool import ReplayPool
from tsc.cost.measures import MEASURES
from tsc.cost.outcome import Outcomes, OutcomeSettings

logger = logging.getLogger(__name__)

_COUNTED = ("outcome_from_sample", "outcome_from_cache", "outcome_from_replay", "audited", "audit_disagreed")
_FROM_SAMPLE = Origin(outcome_from_sample=1.0)


@dataclass(frozen=True, kw_only=True)
class OutcomesWithOrigin:
    outcomes: Outcomes
    origin: Origin


class OutcomeSource:
    """Safe from many threads. The outcomes never depend on the order of the calls."""

    def __init__(self, settings: OutcomeSettings, replay: ReplaySection, cache: CacheSection) -> None:
        self._settings = settings
        self._cache: OutcomeCache[Outcomes] = OutcomeCache(
            OutcomeStore(cache, settings) if _may_lie_on_disk(settings, replay, cache) else None
        )
        self._pool = ReplayPool(replay)
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._disagreed: set[str] = set()

    def find(self, truth: GroundTruth, settings: RewardSettings) -> OutcomesWithOrigin:
        """The sample's own outcomes if they were computed under the same settings, else those of a replay or the cache.

        settings: their audit_fraction and tie_threshold_veh_s say how labels are audited.

        Raises ReplayError, StateError and other TscErrors if a replay was needed and failed.
        """
        outcomes = truth.known_outcomes(self._settings)
        if outcomes is None:
            outcomes, origin = self._replay(truth, on_disk=truth.request.has_all_digests)
        elif self._is_audited(truth, settings.audit_fraction):
            # replayed live once in each process: an outcome that an earlier run kept on disk would prove nothing
            replayed, replayed_origin = self._replay(truth, on_disk=False)
            disagreed = self._compare(truth, outcomes, replayed, settings.tie_threshold_veh_s)
            origin = Origin(
                outcome_from_sample=1.0, audited=1.0, audit_disagreed=float(disagreed), failed=replayed_origin.failed
            )
        else:
            origin = _FROM_SAMPLE
        with self._lock:
            for name in _COUNTED:
                self._totals[name] += int(getattr(origin, name))
        return OutcomesWithOrigin(outcomes=outcomes, origin=origin)

    def _replay(self, truth: GroundTruth, *, on_disk: bool) -> tuple[Outcomes, Origin]:
        num_failed_attempts: list[int] = []

        def replay() -> Outcomes:
            result = self._pool.replay(truth.request, self._settings)
            num_failed_attempts.append(result.num_failed_attempts)
            return result.outcomes

        outcomes = self._cache.get_or_compute(truth.digest(self._settings), replay, on_disk=on_disk)
        return outcomes, Origin.of_replay(was_kept=not num_failed_attempts, failed=any(num_failed_attempts))

    def _is_audited(self, truth: GroundTruth, fraction: float) -> bool:
        # the digest is uniform, so comparing its first 32 bits picks that share, the same in every process
        return fraction > 0 and int(truth.digest(self._settings)[:8], 16) < fraction * 2**32

    def _compare(self, truth: GroundTruth, known: Outcomes, replayed: Outcomes, tie_threshold: float) -> bool:
        """Whether another answer is the better one in the replay. The first time, it is logged."""
        if known.better(tie_threshold) == replayed.better(tie_threshold):
            return False
        digest = truth.digest(self._settings)
        with self._lock:
            is_news = digest not in self._disagreed
            self._disagreed.add(digest)
        if is_news:
            logger.warning(
                "audit of sample %s (state %s, junction %r): labelled yes %g, no %g veh·s, but its replay gives "
                "yes %g, no %g; the label is used",
                truth.request.sample_id,
                truth.request.state_path,
                truth.request.junction_id,
                known.yes,
                known.no,
                replayed.yes,
                replayed.no,
            )
        return True

    def totals(self) -> dict[str, int]:
        """Counts since the start of this process: where outcomes came from, audits, the cache, and the workers."""
        with self._lock:
            own = {name: self._totals[name] for name in _COUNTED}
        return own | self._cache.counts | self._pool.counts

    def worker_pids(self) -> list[int]:
        return self._pool.worker_pids()

    def close(self) -> None:
        self._pool.close()
        self._cache.close()


def _may_lie_on_disk(settings: OutcomeSettings, replay: ReplaySection, cache: CacheSection) -> bool:
    """Outcomes of a user's own code may not, because that code may change under the same name."""
    is_ours = set(settings.measures) <= set(MEASURES)
    replays_sumo = replay.function == ReplaySection.model_fields["function"].default
    return cache.size_limit_mb > 0 and is_ours and replays_sumo
