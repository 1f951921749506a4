"""How sure a model is of its answer: the probabilities of yes and no, read from the log-probabilities of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsc.controllers.language_model import Probabilities
from tsc.junction.decision import Decision

# How many of the most likely tokens a model is asked for at each position. vLLM and OpenAI allow no more.
NUM_TOKENS = 20

# At each position of an answer, the most likely tokens, the chosen one first: the text up to and with the token, and
# its log-probability.
Positions = Sequence[Sequence[tuple[str, float]]]


def answer_probabilities(positions: Positions) -> Probabilities | None:
    """The probabilities of yes and no at the token that decides the answer: the last one at which the text becomes one
    of {"extend": "yes"} and {"extend": "no"} and can no longer become the other.

    The two add up to less than 1 if the model would also write other texts there. One that is not among the most likely
    tokens counts as 0. None if the answer has no such token.
    """
    before = ""
    deciding: Sequence[tuple[str, float]] | None = None
    for candidates in positions:
        text = candidates[0][0]
        if _decision_of(before) is None and _decision_of(text) is not None:
            deciding = candidates
        before = text
    if deciding is None:
        return None
    found = dict.fromkeys(Decision, 0.0)
    for text, log_probability in deciding:
        decision = _decision_of(text)
        if decision is not None:
            found[decision] += math.exp(log_probability)
    return Probabilities(yes=found[Decision.YES], no=found[Decision.NO])


def _without_space(text: str) -> str:
    return "".join(text.split())


_ANSWERS = {decision: _without_space(decision.answer) for decision in Decision}


def _decision_of(text: str) -> Decision | None:
    """The one decision that the text says, or can only become; what stands before its last { does not matter."""
    _, brace, rest = text.rpartition("{")
    read = _without_space(brace + rest)
    possible = [each for each, answer in _ANSWERS.items() if answer.startswith(read) or read.startswith(answer)]
    return possible[0] if len(possible) == 1 else None
