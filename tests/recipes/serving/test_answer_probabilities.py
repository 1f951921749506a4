"""The probabilities of yes and no, read from the tokens of an answer."""

from __future__ import annotations

import math

import pytest

from recipes.serving.answer_probabilities import Positions, answer_probabilities


def positions(*tokens: dict[str, float]) -> Positions:
    """The tokens of each position with their probabilities; the first is the chosen one."""
    found = []
    before = ""
    for candidates in tokens:
        found.append([(before + token, math.log(probability)) for token, probability in candidates.items()])
        before += next(iter(candidates))
    return found


@pytest.mark.parametrize(
    "tokens",
    [
        [{'{"extend": "': 1.0}, {"yes": 0.7, "no": 0.2, "maybe": 0.1}, {'"}': 1.0}],
        [{'{"extend": ': 1.0}, {'"yes"}': 0.7, '"no"}': 0.2}],
        [{'{"extend": "yes"}': 0.7, '{"extend": "no"}': 0.2}],
        [{"{": 1.0}, {'"extend"': 0.9, '"no"': 0.1}, {':"': 1.0}, {"y": 0.7, "n": 0.15, "no": 0.05}, {"es": 1.0}],
        [{"Sure: ": 0.5, '{"extend": "no"}': 0.5}, {'{"extend": "': 1.0}, {"yes": 0.7, "no": 0.2}, {'"} ': 1.0}],
        [{'{"extend": "no"} thinks</think>': 1.0}, {'{"extend": "': 1.0}, {"yes": 0.7, "no": 0.2}],
    ],
)
def test_the_token_that_decides_has_the_probabilities(tokens: list[dict[str, float]]) -> None:
    found = answer_probabilities(positions(*tokens))
    assert found is not None
    assert (found.yes, found.no) == (pytest.approx(0.7), pytest.approx(0.2))


def test_an_answer_that_is_not_among_the_likely_tokens_counts_as_0() -> None:
    found = answer_probabilities(positions({'{"extend": "': 1.0}, {"no": 0.99, "neither": 0.01}))
    assert found is not None
    assert (found.yes, found.no) == (0.0, pytest.approx(0.99))


@pytest.mark.parametrize("tokens", [[], [{"yes": 1.0}], [{'{"extend": "': 1.0}, {"maybe": 0.6, "yes": 0.4}]])
def test_an_answer_that_no_token_decides_has_none(tokens: list[dict[str, float]]) -> None:
    assert answer_probabilities(positions(*tokens)) is None
