"""verl's way in: `reward.custom_reward_function.path=pkg://reward.compute_score name=compute_score`."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reward.ground_truth import parse_ground_truth
from reward.outcome_source import FoundOutcomes, OutcomeSource
from reward.scoring import score_answer
from reward.settings import DEFAULT_SETTINGS_FILE, RewardSettings, load_settings
from tsc.junction.decision import parse_answer

# what verl's reward managers pass besides the configured reward_kwargs
_VERL_KWARGS = frozenset({"reward_router_address", "reward_model_tokenizer"})

_SOURCE_KEYS = (
    "outcome_from_sample",
    "outcome_from_cache",
    "outcome_from_replay",
    "audited",
    "audit_disagreed",
    "failed",
)

_lock = threading.Lock()
_sources: dict[RewardSettings, OutcomeSource] = {}
_totals: Counter[str] = Counter()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """The reward of one answer, with its parts: the same keys for every input, all finite floats.

    solution_str: what the model said. Whatever it is, it is scored: see tsc.junction.decision.parse_answer.
    ground_truth: the JSON string that json_to_parquet writes: how to replay the decision point, and its outcomes.
    kwargs: `settings_file` (default configs/reward.yaml) and any key of that file, which it then overrides.

    score, traffic, format, and term_<name> for each of the settings' terms: see reward.scoring.
    format_exact/embedded/invalid, answer_yes/no, tie: indicators.
    outcome_from_sample, outcome_from_cache, outcome_from_replay: where the outcomes came from; all 0 for an invalid
    answer, which needs none. audited: the label was replayed live as well; audit_disagreed: and another answer was
    the better one. failed: a replay crashed or hung and was repeated.

    A fault of ours raises and is never a number: ReplayError where the last attempt at a replay failed, StateError
    for a state that is missing or damaged, SampleError for a broken ground_truth, ConfigError for wrong settings.

    Safe from many threads; no score depends on the order of the calls, on the worker, nor on what was kept from earlier
    ones. A replayed state goes on exactly as the simulation it was saved from, except for what SUMO cannot restore:
    what a vehicle inside a junction saw of the lanes ahead when it entered, walking persons, flows at random intervals,
    and digits or random numbers that the state was saved without. Such a score is still the same every time.
    docs/guarantees.md has every promise with the test that holds it.
    """
    settings = settings_for(kwargs)
    truth = parse_ground_truth(ground_truth)
    answer = parse_answer(solution_str)
    found: FoundOutcomes | None = None
    if answer.decision is not None:
        found = _source_for(settings).find(truth)
    score = score_answer(answer, found.outcomes if found else None, settings).as_dict()
    for key in _SOURCE_KEYS:
        score[key] = getattr(found, key) if found else 0.0
    with _lock:
        _totals["answers"] += 1
        _totals["invalid_answers"] += found is None
    return score


def totals() -> dict[str, int]:
    """Counts of this process since its start: answers, invalid_answers, where the outcomes of the others came from,
    audits and their disagreements, outcomes read from disk and faults of that disk, replays and their failures, workers
    started."""
    with _lock:
        counts = Counter({name: _totals[name] for name in ("answers", "invalid_answers")})
        sources = list(_sources.values())
    for source in sources:
        counts.update(source.totals())
    return dict(counts)


def worker_pids() -> list[int]:
    """The replay workers of this machine, where this process uses them."""
    with _lock:
        sources = list(_sources.values())
    return sorted({pid for source in sources for pid in source.worker_pids()})


def close() -> None:
    """Leave the replay workers; they end where no other process uses them. The next replay connects again."""
    with _lock:
        sources = list(_sources.values())
        _sources.clear()
    for source in sources:
        source.close()


def settings_for(kwargs: Mapping[str, Any]) -> RewardSettings:
    """The settings that compute_score has under these kwargs. Raises ConfigError."""
    if not kwargs:
        return _load_settings(str(DEFAULT_SETTINGS_FILE), "")
    overrides = {key: value for key, value in kwargs.items() if key not in _VERL_KWARGS}
    path = overrides.pop("settings_file", None) or DEFAULT_SETTINGS_FILE
    # as text, because sections arrive as mappings (OmegaConf's), which have no hash
    return _load_settings(str(path), json.dumps(overrides, default=dict) if overrides else "")


@lru_cache(maxsize=64)
def _load_settings(path: str, overrides: str) -> RewardSettings:
    return load_settings(Path(path), json.loads(overrides) if overrides else None)


def _source_for(settings: RewardSettings) -> OutcomeSource:
    source = _sources.get(settings)
    if source is None:
        with _lock:
            source = _sources.get(settings)
            if source is None:
                source = _sources[settings] = OutcomeSource(settings)
    return source


def _forget_sources() -> None:
    """A forked child has its parent's descriptors, but neither its workers nor its threads."""
    global _lock
    _lock = threading.Lock()
    _sources.clear()


os.register_at_fork(after_in_child=_forget_sources)
