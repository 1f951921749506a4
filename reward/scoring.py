"""The score of an answer: pure arithmetic on the costs of the two outcomes.

    score   = weights.traffic * traffic + weights.format * format
    saving  = cost(other answer) - cost(chosen answer)                  vehicle-seconds
    traffic = 0                                                         invalid answer, or |saving| <= tie threshold
              saving / max(cost(yes), cost(no))                         normalisation relative
              +1 or -1, the sign of saving                              normalisation sign
              saving / clipped_scale_veh_s, cut to [-1, 1]              normalisation clipped
    format  = format.exact, format.embedded or format.invalid, by the form of the answer

`traffic` lies in [-1, 1] and changes its sign with the answer, so of the two answers one never costs anything: no
answer is better than the right one in the exact form, and a constant answer gains only what the traffic gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

from reward.settings import RewardSettings
from tsc.decision import Answer, AnswerForm, Decision
from tsc.outcome import Outcomes


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score and its parts; indicators are 0.0 or 1.0."""

    score: float
    traffic: float
    format: float
    format_exact: float
    format_embedded: float
    format_invalid: float
    answer_yes: float
    answer_no: float
    tie: float

    def as_dict(self) -> dict[str, float]:
        return dict(vars(self))  # in the order above; asdict() copies each number deeply, at four times the cost


def traffic_score(decision: Decision, outcomes: Outcomes, settings: RewardSettings) -> float:
    """What `decision` saves against the other answer, in [-1, 1]; 0 on a tie."""
    if outcomes.better(settings.tie_threshold_veh_s) is None:
        return 0.0
    saving = outcomes.saving(decision)
    if settings.normalisation == "sign":
        return 1.0 if saving > 0 else -1.0
    if settings.normalisation == "clipped":
        scale = settings.clipped_scale_veh_s
    else:
        scale = max(abs(outcomes.yes), abs(outcomes.no))
    return max(-1.0, min(1.0, saving / scale))


def score_answer(answer: Answer, outcomes: Outcomes | None, settings: RewardSettings) -> Score:
    """`outcomes` may be None only where the answer is invalid: such an answer has no traffic part."""
    traffic = 0.0
    tie = False
    if answer.decision is not None:
        if outcomes is None:
            raise ValueError("a valid answer cannot be scored without outcomes")
        traffic = traffic_score(answer.decision, outcomes, settings)
        tie = outcomes.better(settings.tie_threshold_veh_s) is None
    form = {
        AnswerForm.EXACT: settings.format.exact,
        AnswerForm.EMBEDDED: settings.format.embedded,
        AnswerForm.INVALID: settings.format.invalid,
    }[answer.form]
    return Score(
        score=settings.weights.traffic * traffic + settings.weights.format * form,
        traffic=traffic,
        format=form,
        format_exact=float(answer.form is AnswerForm.EXACT),
        format_embedded=float(answer.form is AnswerForm.EMBEDDED),
        format_invalid=float(answer.form is AnswerForm.INVALID),
        answer_yes=float(answer.decision is Decision.YES),
        answer_no=float(answer.decision is Decision.NO),
        tie=float(tie),
    )
