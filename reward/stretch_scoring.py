"""The score of a stretch of decisions: pure arithmetic on its cost and on the tail controller's.

    score   = weights.traffic * traffic + sum of terms[name] * term_name + weights.format * format
    saving  = cost(tail alone) - cost(stretch)                      over the same seconds
    traffic = saving, normalised and cut as reward.scoring does it, with the larger of the two costs where relative
    format  = mean over the answers of format.exact, format.embedded or format.invalid

An unreadable answer counts in the format part, and in the traffic by what the net's own plan did in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward.scoring import format_score, term_key, term_score, traffic_score
from reward.settings import RewardSettings
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import Answer, AnswerForm, Decision
from tsc.replays.stretch import Stretch


def score_stretch(answers: Sequence[Answer], stretch: Stretch, settings: RewardSettings) -> dict[str, float]:
    """The keys of reward.scoring.Score in its order, then num_decisions. Answers' forms and decisions are shares."""
    if len(answers) != stretch.num_decisions or not answers:
        raise ValueError(f"{len(answers)} answers for a stretch of {stretch.num_decisions} decisions")
    outcome_settings = settings.outcome_settings
    # the stretch stands where an answer does in a single decision, and the tail's where the other one does
    outcomes = Outcomes.from_costs(outcome_settings, stretch.costs, stretch.tail_costs)
    chosen = Decision.YES
    traffic = traffic_score(chosen, outcomes, settings)
    terms = {term_key(name): term_score(chosen, outcomes.terms[name], settings) for name, _ in settings.terms}
    form = sum(format_score(answer.form, settings) for answer in answers) / len(answers)

    def share(values: Sequence[bool]) -> float:
        return sum(values) / len(values)

    score = settings.weights.traffic * traffic + settings.weights.format * form
    for name, weight in settings.terms:
        score += weight * terms[term_key(name)]
    return {
        "score": score,
        "traffic": traffic,
        "format": form,
        "format_exact": share([answer.form is AnswerForm.EXACT for answer in answers]),
        "format_embedded": share([answer.form is AnswerForm.EMBEDDED for answer in answers]),
        "format_invalid": share([answer.form is AnswerForm.INVALID for answer in answers]),
        "answer_yes": share([answer.decision is Decision.YES for answer in answers]),
        "answer_no": share([answer.decision is Decision.NO for answer in answers]),
        "tie": float(outcomes.better(settings.tie_threshold_veh_s) is None),
        **terms,
        "num_decisions": float(stretch.num_decisions),
    }
