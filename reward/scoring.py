"""The score of an answer: pure arithmetic on the costs of the two outcomes.

    score   = weights.traffic * traffic + sum of terms[name] * term_name + weights.format * format
    saving  = cost(other answer) - cost(chosen answer)                  in the unit of the measure, vehicle-seconds
    traffic = 0                                                         invalid answer, or |saving| <= tie threshold
              saving / max(|cost(yes)|, |cost(no)|), cut to [-1, 1]     normalisation relative
              +1 or -1, the sign of saving                              normalisation sign
              saving / clipped_scale_veh_s, cut to [-1, 1]              normalisation clipped
    term_…  = the same with the costs of that term and a tie threshold of 0. With the normalisation clipped, terms are
              relative, because the scale is in the unit of the traffic part
    format  = format.exact, format.embedded or format.invalid, by the form of the answer

`traffic` and the terms lie in [-1, 1] and change their sign with the answer, so one of the two answers never costs
anything. Without terms, no answer is better than the right one in the exact form, and a constant answer gains only what
it does to the traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward.settings import RewardSettings
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import Answer, AnswerForm, Decision
from tsc.user_code import USER_PREFIX


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score and its parts. Indicators are 0.0 or 1.0; for a stretch of decisions, they are shares of its answers.

    terms: the part of each term of the settings, in their order, by the key that term_key gives.
    """

    score: float
    traffic: float
    terms: dict[str, float]
    format: float
    format_exact: float
    format_embedded: float
    format_invalid: float
    answer_yes: float
    answer_no: float
    tie: float

    def as_dict(self) -> dict[str, float]:
        """Flat, with the terms at the end."""
        values = dict(vars(self))  # in the order above; asdict() copies each number deeply and takes four times as long
        del values["terms"]
        return values | self.terms


def traffic_score(decision: Decision, outcomes: Outcomes, settings: RewardSettings) -> float:
    """What `decision` saves compared with the other answer, in [-1, 1]. A tie gives 0."""
    if outcomes.better(settings.tie_threshold_veh_s) is None:
        return 0.0
    saving = outcomes.saving(decision)
    if settings.normalisation == "clipped":
        return max(-1.0, min(1.0, saving / settings.clipped_scale_veh_s))
    return _unscaled(saving, outcomes, settings)


def term_score(decision: Decision, outcomes: Outcomes, settings: RewardSettings) -> float:
    """What `decision` saves by the costs of one term, in [-1, 1]. Equal costs give 0."""
    saving = outcomes.saving(decision)
    return _unscaled(saving, outcomes, settings) if saving else 0.0


def _unscaled(saving: float, outcomes: Outcomes, settings: RewardSettings) -> float:
    if settings.normalisation == "sign":
        return 1.0 if saving > 0 else -1.0
    return max(-1.0, min(1.0, saving / max(abs(outcomes.yes), abs(outcomes.no))))


def term_key(name: str) -> str:
    """The key of a term's part in a score: term_switches, or for pkg://module:function, term_module.function."""
    return "term_" + name.removeprefix(USER_PREFIX).replace(":", ".")


def format_score(form: AnswerForm, settings: RewardSettings) -> float:
    return {
        AnswerForm.EXACT: settings.format.exact,
        AnswerForm.EMBEDDED: settings.format.embedded,
        AnswerForm.INVALID: settings.format.invalid,
    }[form]


def score_answer(answer: Answer, outcomes: Outcomes | None, settings: RewardSettings) -> Score:
    """`outcomes` may be None only if the answer is invalid. Such an answer has no traffic part."""
    if answer.decision is not None and outcomes is None:
        raise ValueError("a valid answer cannot be scored without outcomes")
    return _score(_parts_of_text(answer, settings), answer.decision, outcomes, settings)


def score_answers(answers: Sequence[Answer], decision: Decision, outcomes: Outcomes, settings: RewardSettings) -> Score:
    """The one score of several answers: the traffic part and the terms are what `decision` saves, all other parts are
    means over the answers."""
    each = [_parts_of_text(answer, settings) for answer in answers]
    means = {name: sum(parts[name] for parts in each) / len(each) for name in each[0]}
    return _score(means, decision, outcomes, settings)


def _parts_of_text(answer: Answer, settings: RewardSettings) -> dict[str, float]:
    """The parts that depend on the answer's text alone."""
    return {
        "format": format_score(answer.form, settings),
        "format_exact": float(answer.form is AnswerForm.EXACT),
        "format_embedded": float(answer.form is AnswerForm.EMBEDDED),
        "format_invalid": float(answer.form is AnswerForm.INVALID),
        "answer_yes": float(answer.decision is Decision.YES),
        "answer_no": float(answer.decision is Decision.NO),
    }


def _score(
    parts_of_text: dict[str, float], decision: Decision | None, outcomes: Outcomes | None, settings: RewardSettings
) -> Score:
    traffic = 0.0
    terms = {term_key(name): 0.0 for name, _ in settings.terms}
    tie = False
    if decision is not None and outcomes is not None:
        traffic = traffic_score(decision, outcomes, settings)
        tie = outcomes.better(settings.tie_threshold_veh_s) is None
        for name, _ in settings.terms:
            terms[term_key(name)] = term_score(decision, outcomes.terms[name], settings)
    score = settings.weights.traffic * traffic + settings.weights.format * parts_of_text["format"]
    for name, weight in settings.terms:
        score += weight * terms[term_key(name)]
    return Score(score=score, traffic=traffic, terms=terms, tie=float(tie), **parts_of_text)
