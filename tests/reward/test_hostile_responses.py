"""Whatever a model says is scored: never an exception, always the same keys, finite numbers within bounds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reward.compute_score import compute_score
from reward.settings import RewardSettings, load_settings
from tsc.cost.outcome import Outcomes, OutcomeSettings

GroundTruthText = Callable[..., str]

YES, NO = '{"extend": "yes"}', '{"extend": "no"}'

SETTINGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "sign": {"normalisation": "sign"},
    "clipped": {"normalisation": "clipped", "clipped_scale_veh_s": 0.5},
    "ties": {"tie_threshold_veh_s": 50.0},
    "other weights": {
        "weights": {"traffic": 3.0, "format": 7.0},
        "format": {"exact": 0.3, "embedded": -0.1, "invalid": -2.5},
    },
    "no format": {"weights": {"format": 5.0}, "format": {"exact": 0.0, "embedded": 0.0, "invalid": -1.0}},
    "terms": {"terms": {"waiting_time_s": 0.5, "switches": 0.25}, "format": {"invalid": -2.0}},
    "clipped terms": {"terms": {"emissions_co2_g": 1.5}, "format": {"invalid": -3.0}, "normalisation": "clipped"},
}


def bounds(settings: RewardSettings) -> tuple[float, float]:
    """Traffic and terms lie in [-1, 1], and an unreadable answer has neither."""
    reach = settings.weights.traffic + sum(weight for _, weight in settings.terms)
    form, weight = settings.format, settings.weights.format
    return min(weight * form.invalid, weight * form.embedded - reach), weight * form.exact + reach


def assert_well_formed(score: dict[str, float], settings: RewardSettings) -> None:
    assert all(type(value) is float and math.isfinite(value) for value in score.values())
    lowest, highest = bounds(settings)
    assert lowest - 1e-9 <= score["score"] <= highest + 1e-9
    indicators = ("format_exact", "format_embedded", "format_invalid", "answer_yes", "answer_no", "tie")
    assert {score[name] for name in indicators} <= {0.0, 1.0}
    assert score["format_exact"] + score["format_embedded"] + score["format_invalid"] == 1.0
    assert score["answer_yes"] + score["answer_no"] + score["format_invalid"] == 1.0
    assert all(-1.0 <= value <= 1.0 for name, value in score.items() if name == "traffic" or name.startswith("term_"))
    if score["format_invalid"]:
        assert score["score"] == pytest.approx(settings.weights.format * settings.format.invalid)
        assert score["traffic"] == score["tie"] == 0.0


def row(make_ground_truth: GroundTruthText, settings: RewardSettings, costs: list[float]) -> str:
    """A labelled row whose further measures have costs too."""
    asked = settings.outcome_settings()
    pairs = [Outcomes(yes=yes, no=no) for yes, no in zip(costs[::2], costs[1::2], strict=True)]
    terms = dict(zip(asked.terms, pairs[1:], strict=False))
    return make_ground_truth("ok", Outcomes(yes=pairs[0].yes, no=pairs[0].no, terms=terms), asked)


# Fragments that come close to answers, so that the search finds more than noise
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            *('{"extend"', ":", '"yes"', '"no"', "}", "{", "[", "]", ",", " ", "\\", '"', YES, NO),
            *("<think>", "</think>", "NaN", "Infinity", "1e999", "9" * 5000, "true", "```json\n"),
            *("\x00", "\ud800", "уes", "｛", "\ufeff"),  # noqa: RUF001
        ]
    )
    | st.text(max_size=5),
    max_size=12,
).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["yes", "no"]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["extend", "Extend", "a"]), inner),
    max_leaves=8,
)
JSON_TEXTS = VALUES.map(json.dumps) | VALUES.map(lambda value: json.dumps({"extend": value}))
RESPONSES = (
    FRAGMENTS | JSON_TEXTS | st.text(st.characters(), max_size=200) | st.tuples(FRAGMENTS, JSON_TEXTS).map("".join)
)
COSTS = st.lists(st.floats(0, 1e300) | st.integers(0, 100).map(float), min_size=6, max_size=6)


@given(response=RESPONSES, costs=COSTS)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_response_gets_the_same_keys_and_a_score_within_the_bounds_of_the_settings(
    make_ground_truth: GroundTruthText, overrides: dict[str, Any], response: str, costs: list[float]
) -> None:
    kwargs = {"audit_fraction": 0.0, **overrides}
    settings = load_settings(overrides=kwargs)
    truth = row(make_ground_truth, settings, costs)
    score, of_yes = (compute_score("tsc/x", said, truth, {}, **kwargs) for said in (response, YES))
    assert list(score) == list(of_yes)
    assert_well_formed(score, settings)
    assert score["score"] <= max(of_yes["score"], compute_score("tsc/x", NO, truth, {}, **kwargs)["score"])


LOOK_ALIKES = [
    '{"extend": "уes"}',  # noqa: RUF001  a Cyrillic letter
    '{"extend": "yes\u200b"}',  # a space of no width
    '{"extend": "ｙｅｓ"}',  # noqa: RUF001  full-width letters
    '{"ехtend": "yes"}',  # noqa: RUF001  two Cyrillic letters
    "｛＂extend＂：＂yes＂｝",  # noqa: RUF001  full-width signs
    "{“extend”: “yes”}",
    '{"extend": "ﬁne"}',
    '{"extend": "y\u0065\u0301s"}',  # an accent of its own
]
FAULTY_VALUES = ["true", "1", "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "null", "{}", "[]", '["yes"]']
RESPONSES_THAT_SAY_NOTHING = {
    "empty": "",
    "white space": " \t\r\n" * 1000,
    "null bytes": "\x00" * 1000,
    "half a surrogate pair": "\ud800",
    "100 kB of text": "word " * 20_000,
    "100 kB of braces": "{" * 100_000,
    "100 kB of nested objects": '{"extend":' * 10_000,
    "100 kB of nested arrays": "[" * 100_000,
    "100 kB of nested arrays in an object": '{"extend":' + "[" * 100_000,
    "100 kB of answers": YES * 6000,
    "a long number": '{"extend": ' + "9" * 100_000 + "}",
    "both answers": YES + NO,
    "both answers under one key": '{"extend":"yes","extend":"no"}',
    "an answer within another object": f'{{"answer": {YES}}}',
    "a thought alone": f"<think>{YES}</think>",
    **{f"look-alike {text}": text for text in LOOK_ALIKES},
    **{f"value {value[:20]}": f'{{"extend": {value}}}' for value in FAULTY_VALUES},
}


@pytest.mark.parametrize(
    "response", RESPONSES_THAT_SAY_NOTHING.values(), ids=map(ascii, RESPONSES_THAT_SAY_NOTHING.keys())
)
def test_a_response_that_says_nothing_is_invalid_at_once(make_ground_truth: GroundTruthText, response: str) -> None:
    truth, settings = make_ground_truth("ok", Outcomes(yes=90.0, no=120.0)), load_settings()
    took_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        score = compute_score("tsc/x", response, truth, {})
        took_s.append(time.perf_counter() - began_s)
    assert_well_formed(score, settings)
    assert score["format_invalid"] == 1.0
    assert min(took_s) < 0.02


def test_hostile_responses_from_64_threads_leave_the_others_their_scores(make_ground_truth: GroundTruthText) -> None:
    truth = make_ground_truth("ok", Outcomes(yes=90.0, no=120.0))
    said = [YES, *RESPONSES_THAT_SAY_NOTHING.values(), NO] * 8

    def score(response: str) -> float:
        return compute_score("tsc/x", response, truth, {}, audit_fraction=0.0)["score"]

    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(score, said)) == [score(response) for response in said]


def test_an_answer_behind_100_kb_of_text_is_found(make_ground_truth: GroundTruthText) -> None:
    truth = make_ground_truth("ok", Outcomes(yes=90.0, no=120.0), OutcomeSettings())
    for before in ("word " * 20_000, "\x00" * 100_000, "{" * 100_000 + "</think>"):
        score = compute_score("tsc/x", before + YES, truth, {}, audit_fraction=0.0)
        assert score["answer_yes"] == 1.0
