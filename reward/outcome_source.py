"""Where the outcomes of a decision point come from: its sample, the cache, or a replay; the audit of labels."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass

from reward.ground_truth import GroundTruth
from reward.outcome_cache import OutcomeCache
from reward.outcome_store import OutcomeStore
from reward.settings import ReplaySection, RewardSettings
from reward.workers.pool import ReplayPool
from tsc.cost.measures import MEASURES
from tsc.cost.outcome import Outcomes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundOutcomes:
    """Outcomes and how they were found; indicators are 0.0 or 1.0.

    failed: attempts at the replay failed (crash, time-out) before one succeeded. An outcome is never made up: when
    the last attempt fails, ReplayError is raised instead.
    """

    outcomes: Outcomes
    outcome_from_sample: float = 0.0
    outcome_from_cache: float = 0.0
    outcome_from_replay: float = 0.0
    audited: float = 0.0
    audit_disagreed: float = 0.0
    failed: float = 0.0


class OutcomeSource:
    """Safe from many threads. Which outcomes are found never depends on the order of the calls."""

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._outcome_settings = settings.outcome_settings
        self._cache: OutcomeCache[Outcomes] = OutcomeCache(
            OutcomeStore(settings.cache, self._outcome_settings) if _are_kept(settings) else None
        )
        self._pool = ReplayPool(settings.replay)
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._disagreed: set[str] = set()

    def find(self, truth: GroundTruth) -> FoundOutcomes:
        """The sample's own outcomes where computed under the same settings, else a replay, cached.

        Raises ReplayError, StateError and their like where a replay was needed and could not be had.
        """
        known = truth.known_outcomes(self._outcome_settings)
        if known is None:
            replayed, was_cached, failed = self._replay(truth, on_disk=truth.request.has_all_digests)
            found = FoundOutcomes(
                outcomes=replayed,
                outcome_from_cache=float(was_cached),
                outcome_from_replay=float(not was_cached),
                failed=float(failed),
            )
        elif self._is_audited(truth):
            # live once in each process: what an earlier run kept on disk is no check of this one
            replayed, _, failed = self._replay(truth, on_disk=False)
            disagreed = self._compare(truth, known, replayed)
            found = FoundOutcomes(
                outcomes=known,
                outcome_from_sample=1.0,
                audited=1.0,
                audit_disagreed=float(disagreed),
                failed=float(failed),
            )
        else:
            found = FoundOutcomes(outcomes=known, outcome_from_sample=1.0)
        with self._lock:
            for name in ("outcome_from_sample", "outcome_from_cache", "outcome_from_replay", "audited"):
                self._totals[name] += int(getattr(found, name))
            self._totals["audit_disagreed"] += int(found.audit_disagreed)
        return found

    def _replay(self, truth: GroundTruth, *, on_disk: bool) -> tuple[Outcomes, bool, bool]:
        """Outcomes, whether they were cached, whether an attempt of this call failed."""
        num_failed_attempts: list[int] = []

        def replay() -> Outcomes:
            replayed = self._pool.replay(truth.request, self._outcome_settings)
            num_failed_attempts.append(replayed.num_failed_attempts)
            return replayed.outcomes

        outcomes = self._cache.get_or_compute(truth.digest(self._outcome_settings), replay, on_disk=on_disk)
        return outcomes, not num_failed_attempts, any(num_failed_attempts)

    def _is_audited(self, truth: GroundTruth) -> bool:
        # the digest is uniform, so its first 32 bits below the fraction pick that share, the same in every process
        fraction = self._settings.audit_fraction
        return fraction > 0 and int(truth.digest(self._outcome_settings)[:8], 16) < fraction * 2**32

    def _compare(self, truth: GroundTruth, known: Outcomes, replayed: Outcomes) -> bool:
        threshold = self._settings.tie_threshold_veh_s
        if known.better(threshold) == replayed.better(threshold):
            return False
        digest = truth.digest(self._outcome_settings)
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
        """Counts since the start of this process: where outcomes came from, audits, cache, and what the workers did."""
        names = ("outcome_from_sample", "outcome_from_cache", "outcome_from_replay", "audited", "audit_disagreed")
        with self._lock:
            own = {name: self._totals[name] for name in names}
        return own | self._cache.counts | self._pool.counts

    def worker_pids(self) -> list[int]:
        return self._pool.worker_pids()

    def close(self) -> None:
        self._pool.close()
        self._cache.close()


def _are_kept(settings: RewardSettings) -> bool:
    """Whether outcomes may lie on disk: not those of a user's own code, which may change under the same name."""
    outcome = settings.outcome_settings
    is_ours = {outcome.measure, *outcome.terms} <= set(MEASURES)
    replays_sumo = settings.replay.function == ReplaySection.model_fields["function"].default
    return settings.cache.size_limit_mb > 0 and is_ours and replays_sumo
