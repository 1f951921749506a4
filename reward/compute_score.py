"""The function that verl calls: `reward.custom_reward_function.path=pkg://reward.compute_score name=compute_score`.

python reward/compute_score.py      prints some answers to one decision, with their scores
"""

from __future__ import annotations

import json
import os
import runpy
import threading
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reward.ground_truth import parse_ground_truth
from reward.origin import NO_OUTCOMES
from reward.outcome_source import OutcomeSource
from reward.scoring import score_answer
from reward.settings import DEFAULT_SETTINGS_FILE, CacheSection, ReplaySection, RewardSettings, load_settings
from tsc.cost.outcome import OutcomeSection
from tsc.junction.decision import parse_answer

# what verl's reward managers pass in addition to the configured reward_kwargs
_VERL_KWARGS = frozenset({"reward_router_address", "reward_model_tokenizer"})

# what an OutcomeSource depends on: how decisions are judged, the names of the terms, the workers, and the kept outcomes
_SourceKey = tuple[OutcomeSection, tuple[str, ...], ReplaySection, CacheSection]

_lock = threading.Lock()
_sources: dict[_SourceKey, OutcomeSource] = {}
_totals: Counter[str] = Counter()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """The reward of one answer, with its parts: the same keys for every input, all finite floats.

    solution_str: the text of the model's answer. Any text is scored (tsc.junction.decision.parse_answer).
    ground_truth: the JSON text that json_to_parquet writes: how to replay the decision point, and its outcomes.
    kwargs: `settings_file` (default configs/reward.yaml), and any key of that file to override it.

    The keys are those of reward.scoring.Score, with term_<name> for each term of the settings, then those of
    reward.origin.Origin, which are all 0 for an invalid answer, because it needs no outcomes.

    A fault of ours raises and is never a number: ReplayError if the last attempt at a replay failed, StateError for a
    state that is missing or damaged, SampleError for a broken ground_truth, ConfigError for wrong settings, and
    TypeError for an answer that is not text. verl's reward managers decode the answer, so theirs always is.

    Safe from many threads. No score depends on the order of the calls, on the worker, or on what was kept from earlier
    calls. A replayed state continues exactly as the simulation that it was saved from, except for what SUMO cannot
    restore: what a vehicle inside a junction saw of the lanes ahead when it entered, walking persons, flows at random
    intervals, and digits or random numbers that the state was saved without. Even then, the score is the same every
    time. docs/guarantees.md lists every promise with the test that checks it.
    """
    settings = settings_for(kwargs)
    truth = parse_ground_truth(ground_truth)
    if not isinstance(solution_str, str):
        raise TypeError(
            f"solution_str for sample {truth.request.sample_id} is of type {type(solution_str).__name__}: must be the "
            "decoded text of the answer"
        )
    answer = parse_answer(solution_str)
    outcomes, origin = None, NO_OUTCOMES
    if answer.decision is not None:
        found = _source_for(settings, truth.scenario).find(truth, settings)
        outcomes, origin = found.outcomes, found.origin
    score = score_answer(answer, outcomes, settings).as_dict() | origin.as_dict()
    with _lock:
        _totals["answers"] += 1
        _totals["invalid_answers"] += outcomes is None
    return score


def totals() -> dict[str, int]:
    """Counts of this process since its start: answers, invalid_answers, where the outcomes of the valid answers came
    from, audits and their disagreements, outcomes read from disk and faults of that disk, replays and their failures,
    and workers started."""
    with _lock:
        counts = Counter({name: _totals[name] for name in ("answers", "invalid_answers")})
        sources = list(_sources.values())
    for source in sources:
        counts.update(source.totals())
    return dict(counts)


def worker_pids() -> list[int]:
    """The process ids of the replay workers of this machine, if this process uses them."""
    with _lock:
        sources = list(_sources.values())
    return sorted({pid for source in sources for pid in source.worker_pids()})


def close() -> None:
    """Leave the replay workers. They end if no other process uses them. The next replay connects again."""
    with _lock:
        sources = list(_sources.values())
        _sources.clear()
    for source in sources:
        source.close()


def settings_for(kwargs: Mapping[str, Any]) -> RewardSettings:
    """The settings that compute_score uses with these kwargs. Raises ConfigError."""
    if not kwargs:
        return _load_settings(str(DEFAULT_SETTINGS_FILE), "")
    overrides = {key: value for key, value in kwargs.items() if key not in _VERL_KWARGS}
    path = overrides.pop("settings_file", None) or DEFAULT_SETTINGS_FILE
    # as text, because sections arrive as mappings (OmegaConf's), which cannot be hashed
    return _load_settings(str(path), json.dumps(overrides, default=dict) if overrides else "")


@lru_cache(maxsize=64)
def _load_settings(path: str, overrides: str) -> RewardSettings:
    return load_settings(Path(path), json.loads(overrides) if overrides else None)


def _source_for(settings: RewardSettings, scenario: str) -> OutcomeSource:
    section = settings.section_of(scenario)
    key = (section, tuple([name for name, _ in settings.terms]), settings.replay, settings.cache)
    source = _sources.get(key)
    if source is None:
        with _lock:
            source = _sources.get(key)
            if source is None:
                source = OutcomeSource(settings.outcome_settings(scenario), settings.replay, settings.cache)
                _sources[key] = source
    return source


def _forget_sources() -> None:
    """A forked child has its parent's descriptors, but not its workers and threads."""
    global _lock
    _lock = threading.Lock()
    _sources.clear()


os.register_at_fork(after_in_child=_forget_sources)


if __name__ == "__main__":
    # A program of its own, which imports this file under its own name: so there is one set of sources.
    runpy.run_module("reward.first_look", run_name="__main__")
