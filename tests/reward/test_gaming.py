"""Ways in which a policy could score without running the traffic well, over all settings that the file accepts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.scoring import score_answer
from reward.settings import RewardSettings
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import INVALID_ANSWER, Answer, AnswerForm, Decision

READABLE = (AnswerForm.EXACT, AnswerForm.EMBEDDED)
ROUNDING = 1e-6

costs = st.floats(min_value=0, max_value=5000)
outcomes = st.builds(lambda yes, no: Outcomes(yes=yes, no=no), costs, costs)
weight = st.floats(min_value=0, max_value=20)
form_score = st.floats(min_value=-20, max_value=20)
overrides = st.fixed_dictionaries(
    {
        "normalisation": st.sampled_from(["relative", "sign", "clipped"]),
        "clipped_scale_veh_s": st.floats(min_value=1, max_value=500),
        "tie_threshold_veh_s": st.one_of(st.just(0.0), st.floats(min_value=0, max_value=50)),
        # a traffic weight of 1e-20 would be lost in the rounding of the sum
        "weights": st.fixed_dictionaries({"traffic": st.floats(min_value=0.01, max_value=20), "format": weight}),
        # one below the other more often than three numbers drawn apart, which are nearly always refused
        "format": st.tuples(form_score, weight, st.floats(min_value=0, max_value=40)).map(
            lambda t: {"exact": t[0], "embedded": t[0] - t[1] / 10, "invalid": t[0] - t[1] / 10 - t[2]}
        ),
    }
)


def accepted(values: dict[str, Any]) -> RewardSettings:
    """The settings, or this example of hypothesis does not count, as the file would be refused."""
    try:
        return RewardSettings(**values)
    except ValidationError:
        assume(False)
        raise


def score(decision: Decision, form: AnswerForm, of: Outcomes, under: RewardSettings) -> float:
    return score_answer(Answer(decision=decision, form=form), of, under).score


def unreadable(under: RewardSettings) -> float:
    return score_answer(INVALID_ANSWER, None, under).score


# settings that a file may not have are drawn, too, and do not count
many = hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@many
@given(overrides, outcomes)
def test_no_accepted_settings_let_an_unreadable_answer_beat_a_readable_one(
    values: dict[str, Any], of: Outcomes
) -> None:
    under = accepted(values)
    worst = min(score(decision, form, of, under) for decision in Decision for form in READABLE)
    assert unreadable(under) <= worst + ROUNDING


@many
@given(overrides, outcomes, outcomes, st.floats(min_value=0.01, max_value=20))
def test_neither_do_settings_with_a_term_of_the_users(
    values: dict[str, Any], of: Outcomes, of_term: Outcomes, term_weight: float
) -> None:
    under = accepted(values | {"terms": {"switches": term_weight}})
    both = Outcomes(yes=of.yes, no=of.no, terms={"switches": of_term})
    worst = min(score(decision, form, both, under) for decision in Decision for form in READABLE)
    assert unreadable(under) <= worst + ROUNDING


@many
@given(overrides, costs.filter(lambda cost: cost > 1))
def test_no_accepted_settings_let_a_better_form_make_up_for_the_worse_answer_at_full_gap(
    values: dict[str, Any], cost: float
) -> None:
    under = accepted(values)
    assume(under.tie_threshold_veh_s < cost)
    # one answer costs nothing, the other something: the saving is all of the cost
    of = Outcomes(yes=0.0, no=max(cost, under.clipped_scale_veh_s))
    for good, bad in itertools.product(READABLE, READABLE):
        assert score(Decision.YES, good, of, under) > score(Decision.NO, bad, of, under)


@many
@given(overrides, outcomes)
def test_in_the_same_form_the_better_answer_never_scores_less(values: dict[str, Any], of: Outcomes) -> None:
    under = accepted(values)
    better = of.better(under.tie_threshold_veh_s)
    for form in READABLE:
        if better is None:
            assert score(Decision.YES, form, of, under) == score(Decision.NO, form, of, under)
        else:
            assert score(better, form, of, under) >= score(better.other, form, of, under)


@many
@given(overrides, st.lists(outcomes, min_size=1, max_size=20))
def test_no_accepted_settings_let_a_constant_answer_beat_the_better_answers(
    values: dict[str, Any], states: list[Outcomes]
) -> None:
    under = accepted(values)
    best = sum(score(of.better() or Decision.NO, AnswerForm.EXACT, of, under) for of in states)
    for constant in Decision:
        assert sum(score(constant, AnswerForm.EXACT, of, under) for of in states) <= best + ROUNDING * len(states)


def test_the_space_of_settings_that_these_tests_draw_from_holds_accepted_ones_of_all_kinds() -> None:
    """Else the tests above could pass by never looking at anything."""
    seen: set[str] = set()

    @hypothesis_settings(max_examples=300, deadline=None, database=None)
    @given(overrides)
    def look(values: dict[str, Any]) -> None:
        try:
            under = RewardSettings(**values)
        except ValidationError as error:
            seen.update(kind for kind in ("must be below weights.traffic", "worst valid answer") if kind in str(error))
        else:
            seen.add(under.normalisation)

    look()
    assert seen >= {"relative", "sign", "clipped", "worst valid answer"}


@pytest.mark.parametrize("constant", Decision)
@pytest.mark.parametrize("normalisation", ["relative", "sign", "clipped"])
def test_among_mirrored_states_a_constant_answer_earns_no_more_than_its_format(
    constant: Decision, normalisation: str
) -> None:
    """Balanced states whose gaps have the same sizes either way: what is left for a constant answer is the format."""
    under = RewardSettings.model_validate({"normalisation": normalisation})
    gaps = [(20.0, 80.0), (5.0, 6.0), (0.0, 300.0)]
    states = [Outcomes(yes=a, no=b) for a, b in gaps] + [Outcomes(yes=b, no=a) for a, b in gaps]
    mean = sum(score(constant, AnswerForm.EXACT, of, under) for of in states) / len(states)
    assert mean == pytest.approx(under.weights.format * under.format.exact)
