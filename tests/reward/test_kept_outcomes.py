"""compute_score with SUMO itself and outcomes that an earlier process kept on disk."""

from __future__ import annotations

import json
import logging
import multiprocessing
import random
import resource
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import reward.compute_score as module
from reward.compute_score import compute_score
from tsc.cost.outcome import OutcomeSettings
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.sumo.sumo_input import SumoInput

YES = '{"extend": "yes"}'
REPLAY = {"workers": 2, "timeout_s": 60.0}


@pytest.fixture(scope="module")
def labelled(small_dataset: Path) -> list[str]:
    samples = [Sample.model_validate(v) for v in json.loads((small_dataset / "grpo_dataset.json").read_text())]
    return [
        json.dumps(
            {
                "request": ReplayRequest.from_sample(sample, small_dataset).to_json(),
                "outcomes": sample.outcomes.to_json() if sample.outcomes else None,
            }
        )
        for sample in samples[8:13]
    ]


@pytest.fixture(scope="module")
def unlabelled(labelled: list[str]) -> list[str]:
    return [json.dumps(json.loads(truth) | {"outcomes": None}) for truth in labelled]


def score_all(truths: list[str], folder: Path, **kwargs: Any) -> list[dict[str, float]]:
    cache = {"directory": str(folder), **kwargs.pop("cache", {})}
    kwargs = {"replay": REPLAY, "audit_fraction": 0.0, **kwargs}
    return [compute_score("tsc/four_way", YES, truth, {}, cache=cache, **kwargs) for truth in truths]


def score_all_here_and_end(truths: list[str], folder: Path) -> tuple[list[dict[str, float]], dict[str, int]]:
    scores, totals = score_all(truths, folder), module.totals()
    module.close()
    return scores, totals


def parts(scores: list[dict[str, float]]) -> list[dict[str, float]]:
    """All but where the outcomes came from."""
    return [{key: value for key, value in score.items() if not key.startswith("outcome_from")} for score in scores]


def test_another_process_takes_from_the_disk_what_this_one_replayed(unlabelled: list[str], tmp_path: Path) -> None:
    live, totals = score_all_here_and_end(unlabelled, tmp_path)
    assert all(score["outcome_from_replay"] == 1.0 for score in live)
    assert (totals["replays"], totals["cache_disk_hits"], totals["cache_faults"]) == (len(live), 0, 0)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        kept, again, totals = processes.submit(_score_twice, unlabelled, tmp_path).result(timeout=120)
    assert all(score["outcome_from_cache"] == 1.0 for score in kept + again)
    assert parts(kept) == parts(again) == parts(live)
    assert (totals["replays"], totals["started"]) == (0, 0)
    assert totals["cache_disk_hits"] == len(live)  # then they are in memory


def _score_twice(truths: list[str], folder: Path) -> tuple[Any, Any, dict[str, int]]:
    return score_all(truths, folder), score_all(truths, folder), module.totals()


def test_everything_in_a_request_that_decides_the_outcomes_is_in_its_key(unlabelled: list[str]) -> None:
    # where the files lie, what the sample is called, and the files themselves, which the digests name
    beside = {"sample_id", "dataset_dir", "state_file", "embedded"}
    beside_in_sumo = {"version", "net_file", "route_files"}  # the version is the installed one, which is in the key
    numbers = {"seed", "step_length_s", "time_to_teleport_s"}
    request = ReplayRequest.from_json(json.loads(unlabelled[0])["request"])
    assert request.has_all_digests
    extra = {"additional_files": ("a.add.xml",), "additional_sha256": ("digest",)}
    request = replace(request, sumo=request.sumo.model_copy(update=extra))

    def is_in_the_key(changed: ReplayRequest) -> bool:
        return changed.digest(OutcomeSettings(), "1.28.0") != request.digest(OutcomeSettings(), "1.28.0")

    for name in {field.name for field in fields(request)} - {"sumo"}:
        changed = replace(request, **{name: {} if name == "clocks" else "other"})
        assert is_in_the_key(changed) == (name not in beside), name
    for name in SumoInput.model_fields:
        other = ("other",) if isinstance(getattr(request.sumo, name), tuple) else 7 if name in numbers else "other"
        changed = replace(request, sumo=request.sumo.model_copy(update={name: other}))
        assert is_in_the_key(changed) == (name not in beside_in_sumo), name
    # a file without a digest has only its name
    unknown = replace(request, sumo=request.sumo.model_copy(update={"additional_sha256": None}))
    elsewhere = replace(unknown, dataset_dir="other")
    assert unknown.digest(OutcomeSettings(), "1.28.0") != elsewhere.digest(OutcomeSettings(), "1.28.0")
    assert request.digest(OutcomeSettings(), "1.29.0") != request.digest(OutcomeSettings(), "1.28.0")


def test_outcomes_of_other_settings_are_replayed(unlabelled: list[str], tmp_path: Path) -> None:
    score_all_here_and_end(unlabelled[:2], tmp_path)
    for outcome in ({"horizon_s": 30}, {"tail": "gap_out"}, {"scope": "network"}, {"measure": "waiting_time_s"}):
        (score,) = score_all(unlabelled[:1], tmp_path, outcome=outcome)
        assert score["outcome_from_replay"] == 1.0
    (score,) = score_all(unlabelled[:1], tmp_path, tie_threshold_veh_s=5.0, normalisation="sign")
    assert score["outcome_from_cache"] == 1.0  # these decide the score, not the outcomes


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000, random.Random(1).randbytes(50_000)])
def test_damage_on_disk_changes_no_score(
    unlabelled: list[str], tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    live, _ = score_all_here_and_end(unlabelled, tmp_path)
    (database,) = tmp_path.rglob("cache.db")
    database.write_bytes(damage)
    with caplog.at_level(logging.WARNING, "reward"):
        again, totals = score_all_here_and_end(unlabelled, tmp_path)
    assert parts(again) == parts(live)
    assert totals["replays"] == len(live)
    assert totals["cache_faults"] == len(caplog.records) == (1 if damage else 0)
    third, totals = score_all_here_and_end(unlabelled, tmp_path)
    assert parts(third) == parts(live)
    assert totals["replays"] == 0


def test_a_folder_that_cannot_be_used_changes_no_score(
    unlabelled: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live, _ = score_all_here_and_end(unlabelled, tmp_path / "cache")
    (tmp_path / "file").write_text("mine")
    with caplog.at_level(logging.WARNING, "reward"):
        bypassed, totals = score_all_here_and_end(unlabelled, tmp_path / "file")
    assert parts(bypassed) == parts(live)
    assert totals["cache_faults"] == 2  # the first reading and the first writing; then it is left alone
    assert len(caplog.records) == 1


def test_a_full_disk_changes_no_score(unlabelled: list[str], tmp_path: Path) -> None:
    live, _ = score_all_here_and_end(unlabelled, tmp_path / "cache")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        scores, totals = processes.submit(_score_with_a_full_disk, unlabelled, tmp_path / "full").result(timeout=120)
    assert parts(scores) == parts(live)
    assert (totals["replays"], totals["cache_faults"]) == (len(live), 2)


def _score_with_a_full_disk(truths: list[str], folder: Path) -> tuple[list[dict[str, float]], dict[str, int]]:
    score_all(truths, folder, cache={"size_limit_mb": 0}, outcome={"horizon_s": 5})  # starts what replays
    before = Counter(module.totals())
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # of this process, not of the workers
    scores = score_all(truths, folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    totals = Counter(module.totals())
    totals.subtract(before)
    module.close()
    return scores, dict(totals)


def test_an_audit_is_replayed_live_although_the_outcome_is_on_disk(
    labelled: list[str], unlabelled: list[str], tmp_path: Path
) -> None:
    score_all_here_and_end(unlabelled, tmp_path)
    scores = score_all(labelled, tmp_path, audit_fraction=1.0)
    assert all(score["audited"] == score["outcome_from_sample"] == 1.0 for score in scores)
    assert module.totals()["replays"] == len(labelled)


def test_a_size_of_zero_keeps_nothing(unlabelled: list[str], tmp_path: Path) -> None:
    score_all(unlabelled[:1], tmp_path, cache={"size_limit_mb": 0})
    assert list(tmp_path.rglob("cache.db")) == []


@pytest.mark.parametrize(
    ("request_changes", "sumo_changes"),
    [
        ({"state_sha256": None}, {}),
        ({}, {"net_sha256": None}),
        ({}, {"route_sha256": None}),
    ],
)
def test_outcomes_of_files_that_are_not_named_by_content_are_kept_in_memory_only(
    unlabelled: list[str], tmp_path: Path, request_changes: dict[str, Any], sumo_changes: dict[str, Any]
) -> None:
    values = json.loads(unlabelled[0])
    values["request"] |= request_changes
    values["request"]["sumo"] |= sumo_changes
    first, second = score_all([json.dumps(values)] * 2, tmp_path)
    assert (first["outcome_from_replay"], second["outcome_from_cache"]) == (1.0, 1.0)
    assert list(tmp_path.rglob("cache.db")) == []


def test_outcomes_of_a_users_own_replay_function_are_kept_in_memory_only(
    unlabelled: list[str], tmp_path: Path, stand_ins: str
) -> None:
    values = json.loads(unlabelled[0])
    values["request"]["dataset_dir"] = str(tmp_path)
    (tmp_path / Path(values["request"]["state_file"]).parent).mkdir(parents=True)
    score_all([json.dumps(values)], tmp_path, replay=REPLAY | {"function": stand_ins})
    assert list(tmp_path.rglob("cache.db")) == []
