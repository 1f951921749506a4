"""The score of a stretch of decisions: pure arithmetic on its cost and on the tail controller's.

    score   = weights.traffic * traffic + sum of terms[name] * term_name + weights.format * format
    saving  = cost(tail alone) - cost(stretch)                      over the same seconds
    traffic = saving, normalised and cut as in reward.scoring. The relative normalisation divides by the larger cost
    format  = mean over the answers of format.exact, format.embedded or format.invalid

An unreadable answer counts in the format part. In the traffic part, the decision of the net's own plan counts, which
was carried out in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward.scoring import Score, score_answers
from reward.settings import RewardSettings
from tsc.cost.outcome import Outcomes
from tsc.junction.decision import Answer, Decision
from tsc.replays.stretch import Stretch


def score_stretch(answers: Sequence[Answer], stretch: Stretch, settings: RewardSettings) -> Score:
    """The forms and decisions of the answers are shares. Raises ValueError unless there is one answer a decision."""
    if len(answers) != stretch.num_decisions or not answers:
        raise ValueError(f"{len(answers)} answers for a stretch of {stretch.num_decisions} decisions")
    # the stretch takes the place of the chosen answer, and the tail alone that of the other one; all scenarios have the
    # same terms
    outcomes = Outcomes.from_costs(settings.outcome_settings(), stretch.costs, stretch.tail_costs)
    return score_answers(answers, Decision.YES, outcomes, settings)
