"""Where the outcomes behind a score came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Indicators of 0.0 or 1.0, which every score carries under these names.

    outcome_from_sample, outcome_from_cache, outcome_from_replay: one of them is 1.0; none is if no outcome was needed.
    audited: the sample's label was compared with a replay. audit_disagreed: the replay favours the other answer.
    failed: attempts at the replay failed (crash, time-out) before one succeeded. An outcome is never made up: if the
    last attempt fails, ReplayError is raised instead.
    """

    outcome_from_sample: float = 0.0
    outcome_from_cache: float = 0.0
    outcome_from_replay: float = 0.0
    audited: float = 0.0
    audit_disagreed: float = 0.0
    failed: float = 0.0

    @classmethod
    def of_replay(cls, *, was_kept: bool, failed: bool) -> Origin:
        """was_kept: it was replayed before, and its result was still there."""
        return cls(outcome_from_cache=float(was_kept), outcome_from_replay=float(not was_kept), failed=float(failed))

    def as_dict(self) -> dict[str, float]:
        return dict(vars(self))


NO_OUTCOMES = Origin()
