"""compute_score as verl calls it."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

import reward.compute_score as module
from reward.compute_score import compute_score
from reward.settings import RewardSettings
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ConfigError, ReplayError, SampleError, StateError, TscError

GroundTruthText = Callable[..., str]

YES, NO = '{"extend": "yes"}', '{"extend": "no"}'
KEYS = [
    "score",
    "traffic",
    "format",
    "format_exact",
    "format_embedded",
    "format_invalid",
    "answer_yes",
    "answer_no",
    "tie",
    "outcome_from_sample",
    "outcome_from_cache",
    "outcome_from_replay",
    "audited",
    "audit_disagreed",
    "failed",
]
# yes saves 30 of 120 vehicle-seconds
LABEL = Outcomes(yes=90.0, no=120.0)


def assert_well_formed(score: dict[str, float]) -> None:
    assert list(score) == KEYS
    assert all(type(value) is float and math.isfinite(value) for value in score.values())
    assert -1.0 <= score["traffic"] <= 1.0
    assert -1.0 <= score["score"] <= 1.1
    assert score["format_exact"] + score["format_embedded"] + score["format_invalid"] == 1.0
    assert score["answer_yes"] + score["answer_no"] + score["format_invalid"] == 1.0


@pytest.mark.parametrize(
    ("solution", "form", "expected"),
    [
        (YES, "exact", 0.35),
        (NO, "exact", -0.15),
        (f"\n  {YES}\n", "exact", 0.35),
        ('{"extend":"yes"}', "exact", 0.35),
        ('{ "extend" :\n"yes" }', "exact", 0.35),
        ('{"extend": "\\u0079es"}', "exact", 0.35),  # the same JSON string, escaped
        (f"<think>{NO} or {YES}?</think>{YES}", "exact", 0.35),
        (f"<think>a</think>b</think>\n{YES}", "exact", 0.35),
        (f"Sure: {YES}", "embedded", 0.30),
        (f"```json\n{YES}\n```", "embedded", 0.30),
        (f"{NO} because the queue is short", "embedded", -0.20),
        (f"\x00{YES}\x00", "embedded", 0.30),
        ("x" * 100_000 + YES, "embedded", 0.30),
        (YES + NO, "invalid", -1.0),
        (YES + YES, "invalid", -1.0),
        (f"<think>{YES}</think>", "invalid", -1.0),
        ("", "invalid", -1.0),
        ("yes", "invalid", -1.0),
        ('{"extend": "YES"}', "invalid", -1.0),
        ('{"extend": "Yes"}', "invalid", -1.0),
        ('{"extend": " yes"}', "invalid", -1.0),
        ('{"extend": true}', "invalid", -1.0),
        ('{"extend": 1}', "invalid", -1.0),
        ('{"extend": null}', "invalid", -1.0),
        ('{"extend": ["yes"]}', "invalid", -1.0),
        ('{"extend": "maybe"}', "invalid", -1.0),
        ('{"extends": "yes"}', "invalid", -1.0),
        ('{"Extend": "yes"}', "invalid", -1.0),
        ('{"extend": "yes", "why": "queue"}', "invalid", -1.0),
        ('{"extend": "yes", "extend": "no"}', "invalid", -1.0),
        ('{"extend": "yes", "extend": "yes"}', "invalid", -1.0),
        ('{"answer": {"extend": "yes"}}', "invalid", -1.0),
        ('[{"extend": "yes"}', "embedded", 0.30),
        ("{'extend': 'yes'}", "invalid", -1.0),
        ("{extend: yes}", "invalid", -1.0),
        ('{"extend": "yes"', "invalid", -1.0),
        ('{"extend": "yes",}', "invalid", -1.0),
        ('{"extend": "y\x00es"}', "invalid", -1.0),
        ('{"extend": "yеs"}', "invalid", -1.0),  # noqa: RUF001  a Cyrillic letter
        ('{"ｅxtend": "yes"}', "invalid", -1.0),  # noqa: RUF001  a full-width e
        ("{“extend”: “yes”}", "invalid", -1.0),
        (YES + "x" * 100_000, "invalid", -1.0),
        ("{" * 100_000, "invalid", -1.0),
        ('{"a":' * 100_000, "invalid", -1.0),
        ("[" * 100_000, "invalid", -1.0),
        ('{"extend": ' + "9" * 100_000 + "}", "invalid", -1.0),
        ("\ud800", "invalid", -1.0),  # half a surrogate pair
    ],
)
def test_answer_variants(make_ground_truth: GroundTruthText, solution: str, form: str, expected: float) -> None:
    score = compute_score("tsc/four_way", solution, make_ground_truth("ok", LABEL), {}, audit_fraction=0.0)
    assert_well_formed(score)
    assert score[f"format_{form}"] == 1.0
    assert score["score"] == pytest.approx(expected)


def test_labels_of_the_same_settings_need_no_replay(make_ground_truth: GroundTruthText) -> None:
    before = module.totals()
    score = compute_score("tsc/x", YES, make_ground_truth("ok", LABEL), audit_fraction=0.0)
    assert (score["outcome_from_sample"], score["outcome_from_replay"]) == (1.0, 0.0)
    assert module.worker_pids() == []
    assert module.totals()["answers"] == before["answers"] + 1


def replaying(stand_ins: str, **changes: object) -> dict[str, object]:
    """kwargs under which replays are done by the stand-ins."""
    replay = {"workers": 2, "timeout_s": 30.0, "function": stand_ins, **changes.pop("replay", {})}  # type: ignore[dict-item]
    return {"audit_fraction": 0.0, "replay": replay, **changes}


def test_labels_of_other_settings_are_not_used(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    truth = make_ground_truth("ok", LABEL, OutcomeSettings(horizon_s=30))
    kwargs = replaying(stand_ins)
    first, second = (compute_score("tsc/x", YES, truth, {}, **kwargs) for _ in range(2))
    assert (first["outcome_from_replay"], first["outcome_from_cache"]) == (1.0, 0.0)
    assert (second["outcome_from_replay"], second["outcome_from_cache"]) == (0.0, 1.0)
    assert first["score"] == second["score"] != pytest.approx(0.35)


def test_outcomes_of_different_settings_are_never_shared(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    kwargs = replaying(stand_ins)
    for horizon_s in (45, 60, 45, 60):
        compute_score("tsc/x", YES, make_ground_truth("ok"), {}, outcome={"horizon_s": horizon_s}, **kwargs)
    assert module.totals()["replays"] == 2
    assert module.totals()["outcome_from_cache"] == 2


def test_settings_that_change_only_the_arithmetic_share_workers_and_kept_outcomes(
    make_ground_truth: GroundTruthText, stand_ins: str
) -> None:
    kwargs = replaying(stand_ins)
    arithmetic: list[dict[str, object]] = [
        {"weights": {"format": 2.0}},
        {"format": {"exact": 0.2}},
        {"normalisation": "sign"},
        {"tie_threshold_veh_s": 5.0},
        {"audit_fraction": 0.5},
    ]
    truth = make_ground_truth("ok")
    scores = [compute_score("tsc/x", YES, truth, {}, **kwargs | changes) for changes in ({}, *arithmetic)]
    assert [score["outcome_from_cache"] for score in scores] == [0.0, *[1.0] * len(arithmetic)]
    assert len(module._sources) == 1
    compute_score("tsc/x", YES, truth, {}, **kwargs | {"outcome": {"horizon_s": 30}})
    assert len(module._sources) == 2


def test_an_invalid_answer_starts_no_replay(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    score = compute_score("tsc/x", "no idea", make_ground_truth("missing"), {}, **replaying(stand_ins))
    assert score["score"] == -1.0
    assert score["outcome_from_sample"] + score["outcome_from_cache"] + score["outcome_from_replay"] == 0.0
    assert module.worker_pids() == []


def test_compute_score_works_from_64_threads(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    truths = [make_ground_truth(f"state-{number}") for number in range(12)]
    kwargs = replaying(stand_ins)
    jobs = [(truth, answer) for truth in truths for answer in (YES, NO, "neither", YES)] * 4

    def scores_of(jobs: list[tuple[str, str]], num_threads: int) -> dict[tuple[str, str], set[float]]:
        with ThreadPoolExecutor(num_threads) as threads:
            scores = threads.map(lambda job: compute_score("tsc/x", job[1], job[0], {}, **kwargs)["score"], jobs)
            found: dict[tuple[str, str], set[float]] = {}
            for job, score in zip(jobs, scores, strict=True):
                found.setdefault(job, set()).add(score)
        return found

    at_once = scores_of(jobs, 64)
    assert all(len(scores) == 1 for scores in at_once.values())
    assert module.totals()["replays"] == len(truths)  # each state once, whoever asked first
    module.close()
    assert scores_of(jobs[::-1], 1) == at_once


def test_scores_are_the_same_in_another_process_and_after_a_crash(
    make_ground_truth: GroundTruthText, stand_ins: str
) -> None:
    kwargs = replaying(stand_ins)
    truth = make_ground_truth("crash_once")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        there = processes.submit(compute_score, "tsc/x", YES, truth, {}, **kwargs).result(timeout=120)
    here = compute_score("tsc/x", YES, truth, {}, **kwargs)
    assert (there["failed"], here["failed"]) == (1.0, 0.0)
    assert there["score"] == here["score"]


def test_a_replay_that_keeps_failing_is_an_error_and_never_a_number(
    make_ground_truth: GroundTruthText, stand_ins: str
) -> None:
    with pytest.raises(ReplayError, match="crash at junction 'J4'"):
        compute_score("tsc/x", YES, make_ground_truth("crash"), {}, **replaying(stand_ins, replay={"retries": 1}))
    assert module.totals()["failed_replays"] == 1


def test_a_missing_state_is_named(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    with pytest.raises(StateError, match="missing does not exist"):
        compute_score("tsc/x", YES, make_ground_truth("missing"), {}, **replaying(stand_ins))


def test_an_audit_reports_a_disagreement_once_and_scores_by_the_label(
    make_ground_truth: GroundTruthText, stand_ins: str, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = replaying(stand_ins, audit_fraction=1.0)
    truth = make_ground_truth("ok")
    live = compute_score("tsc/x", YES, truth, {}, **kwargs)
    assert live["audited"] == 0.0  # there is no label to audit
    wrong_label = Outcomes(yes=1.0, no=2.0) if live["traffic"] < 0 else Outcomes(yes=2.0, no=1.0)
    truth = make_ground_truth("ok", wrong_label)
    with caplog.at_level(logging.WARNING, "reward"):
        scores = [compute_score("tsc/x", YES, truth, {}, **kwargs) for _ in range(3)]
    assert all((s["audited"], s["audit_disagreed"], s["outcome_from_sample"]) == (1.0, 1.0, 1.0) for s in scores)
    assert scores[0]["traffic"] == pytest.approx(-0.5 if wrong_label.yes > wrong_label.no else 0.5)
    assert len(caplog.records) == 1
    assert "sample of ok" in caplog.text and "junction 'J4'" in caplog.text


def test_an_audit_that_agrees_says_so(make_ground_truth: GroundTruthText, stand_ins: str) -> None:
    kwargs = replaying(stand_ins, audit_fraction=1.0)
    better_is_yes = compute_score("tsc/x", YES, make_ground_truth("ok"), {}, **kwargs)["traffic"] > 0
    label = Outcomes(yes=1.0, no=2.0) if better_is_yes else Outcomes(yes=2.0, no=1.0)
    score = compute_score("tsc/x", YES, make_ground_truth("ok", label), {}, **kwargs)
    assert (score["audited"], score["audit_disagreed"]) == (1.0, 0.0)


def test_the_audited_share_is_the_configured_one_and_always_the_same(
    make_ground_truth: GroundTruthText, stand_ins: str
) -> None:
    truths = [make_ground_truth(f"state-{number}", LABEL) for number in range(400)]

    def audited() -> list[float]:
        kwargs = replaying(stand_ins, audit_fraction=0.1)
        return [compute_score("tsc/x", YES, truth, {}, **kwargs)["audited"] for truth in truths]

    first = audited()
    assert 20 <= sum(first) <= 60
    module.close()
    assert audited() == first


@pytest.mark.parametrize(
    ("ground_truth", "told"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "no object 'request'"),
        ('{"outcomes": null}', "no object 'request'"),
        ('{"request": {"sample_id": "s"}}', "not a replay request"),
    ],
)
def test_a_broken_row_is_an_error_even_for_an_invalid_answer(ground_truth: str, told: str) -> None:
    for answer in (YES, "neither"):
        with pytest.raises(SampleError, match=told):
            compute_score("tsc/x", answer, ground_truth, {})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"green_extension_s": 1e308}, "green_extension_s"),
        ({"green_extension_s": 10**300}, "green_extension_s is 1000"),
        ({"min_green_s": 0}, "min_green_s is 0"),
        ({"max_green_s": 9}, "max_green_s of 9 s is below min_green_s of 10 s"),
        ({"current_green_elapsed_s": 1e308}, "current_green_elapsed_s is 1e+308: must be at least min_green_s 10"),
        ({"current_green_elapsed_s": float("nan")}, "current_green_elapsed_s"),
        ({"sumo": None}, "sumo"),
        ({"sumo": {}}, "sumo.version: Field required"),
        ({"clocks": {"J4": {"mode": "red"}}}, "clocks.J4.mode"),
        ({"clocks": []}, "clocks"),
        ({"embedded": {"state": 5}}, "embedded.state"),
        ({"junction_id": ["J4"]}, "junction_id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_value_in_a_row_is_the_same_error_for_every_answer(
    make_ground_truth: GroundTruthText, changes: dict[str, object], told: str
) -> None:
    values = json.loads(make_ground_truth("ok", LABEL))
    truth = json.dumps(values | {"request": values["request"] | changes})
    messages = set()
    for answer in (YES, "neither"):
        with pytest.raises(SampleError, match="not a replay request") as caught:
            compute_score("tsc/x", answer, truth, {})
        messages.add(str(caught.value))
    (message,) = messages
    assert told in message and "json_to_parquet" in message


@pytest.mark.parametrize("truth", [None, {"request": {}}, b"{}", "[" * 100_000, '{"request":' * 5000])
def test_a_row_that_is_not_readable_text_is_an_error(truth: object) -> None:
    for answer in (YES, "neither"):
        with pytest.raises(SampleError, match="ground_truth is"):
            compute_score("tsc/x", answer, truth, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [None, 1.0, b"yes", ["yes"]])
def test_an_answer_that_is_not_text_is_an_error(make_ground_truth: GroundTruthText, answer: object) -> None:
    """verl's reward managers decode the answer, so only a faulty caller passes anything else."""
    with pytest.raises(TypeError, match="solution_str for sample sample of ok is of type"):
        compute_score("tsc/x", answer, make_ground_truth("ok", LABEL), {})  # type: ignore[arg-type]


def test_outcomes_that_are_no_numbers_are_an_error(make_ground_truth: GroundTruthText) -> None:
    truth = make_ground_truth("ok", outcomes=None)
    values = json.loads(truth) | {"outcomes": {"settings": OutcomeSettings().as_dict(), "yes": float("nan"), "no": 1.0}}
    with pytest.raises(SampleError, match="outcomes of sample 'sample of ok'"):
        compute_score("tsc/x", YES, json.dumps(values), {})


def test_an_unknown_argument_is_named_with_its_nearest_spelling(make_ground_truth: GroundTruthText) -> None:
    with pytest.raises(ConfigError, match="'audit_fractions': did you mean 'audit_fraction'"):
        compute_score("tsc/x", YES, make_ground_truth("ok", LABEL), {}, audit_fractions=0.5)


def test_arguments_of_verls_reward_managers_are_accepted(make_ground_truth: GroundTruthText) -> None:
    score = compute_score(
        data_source="tsc/x",
        solution_str=YES,
        ground_truth=make_ground_truth("ok", LABEL),
        extra_info={"index": 0, "num_turns": None},
        reward_router_address="127.0.0.1:1",
        reward_model_tokenizer=None,
        audit_fraction=0.0,
    )
    assert_well_formed(score)


def test_a_settings_file_of_the_users_own_is_used(make_ground_truth: GroundTruthText, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("normalisation: sign\naudit_fraction: 0\n")
    score = compute_score("tsc/x", YES, make_ground_truth("ok", LABEL), {}, settings_file=str(mine))
    assert score["traffic"] == 1.0


def test_reward_is_picklable() -> None:
    assert pickle.loads(pickle.dumps(compute_score)) is compute_score
    assert pickle.loads(pickle.dumps(RewardSettings())) == RewardSettings()


def test_verl_loads_it_by_package_path(make_ground_truth: GroundTruthText) -> None:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://reward.compute_score",
                    "name": "compute_score",
                    "reward_kwargs": {"normalisation": "sign", "audit_fraction": 0.0, "weights": {"traffic": 0.5}},
                }
            }
        }
    )
    loaded = get_custom_reward_fn(config)
    assert loaded is not None
    score = loaded(
        data_source="tsc/x", solution_str=YES, ground_truth=make_ground_truth("ok", LABEL), extra_info={"index": 0}
    )
    assert_well_formed(score)
    assert score["score"] == pytest.approx(0.5 * 1.0 + 0.1)


def test_a_label_counts_under_the_settings_of_its_scenario(make_ground_truth: GroundTruthText) -> None:
    kwargs = {"scenarios": {"narrow": {"horizon_s": 90}}, "audit_fraction": 0.0}
    label = make_ground_truth(outcomes=LABEL, settings=OutcomeSettings(horizon_s=90), scenario="narrow")
    assert compute_score("tsc/narrow", YES, label, **kwargs)["outcome_from_sample"] == 1.0
    # the same label is not what the settings of other scenarios ask for, and the state cannot be replayed
    with pytest.raises(TscError):
        compute_score(
            "tsc/wide", YES, make_ground_truth(outcomes=LABEL, settings=OutcomeSettings(horizon_s=90)), **kwargs
        )
