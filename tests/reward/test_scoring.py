"""Scores against hand-worked cases, and what a policy could gain by form alone."""

from __future__ import annotations

import itertools
import random

import pytest

from reward.scoring import score_answer, traffic_score
from reward.settings import RewardSettings, load_settings
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import Answer, AnswerForm, Decision, parse_answer

NORMALISATIONS = ("relative", "sign", "clipped")


def settings(**changes: object) -> RewardSettings:
    return load_settings(overrides=changes)


@pytest.mark.parametrize(
    ("normalisation", "yes", "no", "expected"),
    [
        # yes costs 90, no costs 120: yes saves 30 of 120
        ("relative", 90.0, 120.0, 0.25),
        ("relative", 120.0, 90.0, -0.25),
        ("relative", 0.0, 7.0, 1.0),
        ("relative", 7.0, 0.0, -1.0),
        ("sign", 90.0, 90.5, 1.0),
        ("sign", 90.5, 90.0, -1.0),
        # the scale is 60 veh·s
        ("clipped", 90.0, 120.0, 0.5),
        ("clipped", 120.0, 90.0, -0.5),
        ("clipped", 0.0, 500.0, 1.0),
        ("clipped", 500.0, 0.0, -1.0),
    ],
)
def test_traffic_part_of_yes_is_what_it_saves(normalisation: str, yes: float, no: float, expected: float) -> None:
    outcomes = Outcomes(yes=yes, no=no)
    assert traffic_score(Decision.YES, outcomes, settings(normalisation=normalisation)) == pytest.approx(expected)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize(("yes", "no"), [(0.0, 0.0), (88.0, 88.0)])
def test_equal_costs_are_a_tie_and_score_no_traffic(normalisation: str, yes: float, no: float) -> None:
    score = score_answer(
        parse_answer(Decision.YES.answer), Outcomes(yes=yes, no=no), settings(normalisation=normalisation)
    )
    assert (score.traffic, score.tie) == (0.0, 1.0)
    assert score.score == pytest.approx(0.1)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_costs_within_the_threshold_are_a_tie(normalisation: str) -> None:
    within = settings(normalisation=normalisation, tie_threshold_veh_s=5.0)
    assert traffic_score(Decision.YES, Outcomes(yes=95.0, no=100.0), within) == 0.0
    assert traffic_score(Decision.YES, Outcomes(yes=94.9, no=100.0), within) > 0.0


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("tie_threshold", [0.0, 3.0])
def test_the_two_answers_score_opposite_traffic_within_bounds(normalisation: str, tie_threshold: float) -> None:
    chosen = settings(normalisation=normalisation, tie_threshold_veh_s=tie_threshold)
    draw = random.Random(1)
    for _ in range(500):
        outcomes = Outcomes(yes=draw.choice([0.0, draw.uniform(0, 300)]), no=draw.uniform(0, 300))
        yes, no = (traffic_score(decision, outcomes, chosen) for decision in Decision)
        assert yes == -no
        assert -1.0 <= yes <= 1.0


def test_score_is_the_weighted_sum_of_its_parts() -> None:
    weighted = settings(weights={"traffic": 2.0, "format": 0.5}, format={"invalid": -5.0})
    score = score_answer(parse_answer('Say {"extend": "no"}'), Outcomes(yes=120.0, no=90.0), weighted)
    assert score.score == pytest.approx(2.0 * 0.25 + 0.5 * 0.05)
    assert (score.format_exact, score.format_embedded, score.format_invalid) == (0.0, 1.0, 0.0)
    assert (score.answer_yes, score.answer_no) == (0.0, 1.0)


def test_an_invalid_answer_scores_the_format_penalty_and_no_traffic() -> None:
    score = score_answer(parse_answer("perhaps"), None, settings())
    assert (score.score, score.traffic, score.format) == (-1.0, 0.0, -1.0)
    assert (score.answer_yes, score.answer_no, score.tie) == (0.0, 0.0, 0.0)


def test_a_valid_answer_without_outcomes_is_a_defect_of_ours() -> None:
    with pytest.raises(ValueError, match="without outcomes"):
        score_answer(parse_answer(Decision.YES.answer), None, settings())


def random_states(number: int = 2000) -> list[Outcomes]:
    """States in which "no" is better in about three of four, as a majority answer would like it."""
    draw = random.Random(7)
    states = []
    for _ in range(number):
        cheaper, dearer = sorted((draw.uniform(20, 300), draw.uniform(20, 300)))
        if draw.random() < 0.75:
            states.append(Outcomes(yes=dearer, no=cheaper))
        else:
            states.append(Outcomes(yes=cheaper, no=dearer))
    return states


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_in_every_state_the_right_answer_in_the_exact_form_scores_most(normalisation: str) -> None:
    chosen = settings(normalisation=normalisation)
    for outcomes in random_states(300):
        right = outcomes.better()
        best = score_answer(Answer(decision=right, form=AnswerForm.EXACT), outcomes, chosen).score
        for decision, form in itertools.product(Decision, (AnswerForm.EXACT, AnswerForm.EMBEDDED)):
            if (decision, form) != (right, AnswerForm.EXACT):
                assert score_answer(Answer(decision=decision, form=form), outcomes, chosen).score < best


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_no_unreadable_answer_scores_more_than_a_wrong_one(normalisation: str) -> None:
    chosen = settings(normalisation=normalisation)
    unreadable = score_answer(parse_answer(""), None, chosen).score
    worst = Outcomes(yes=1000.0, no=0.0)
    for form in (AnswerForm.EXACT, AnswerForm.EMBEDDED):
        assert unreadable <= score_answer(Answer(decision=Decision.YES, form=form), worst, chosen).score


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_always_the_majority_answer_gains_less_than_the_right_answers(normalisation: str) -> None:
    chosen = settings(normalisation=normalisation)
    states = random_states()

    def mean(form: AnswerForm, answer: Decision | None = None) -> float:
        answers = [Answer(decision=answer or outcomes.better(), form=form) for outcomes in states]
        scores = [score_answer(a, o, chosen).score for a, o in zip(answers, states, strict=True)]
        return sum(scores) / len(scores)

    majority = mean(AnswerForm.EXACT, Decision.NO)
    # right answers gain more even when each is given in the poorer form and each majority answer in the best
    assert mean(AnswerForm.EXACT) > majority
    assert mean(AnswerForm.EMBEDDED) > majority
