import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsc.decision import AnswerForm, Decision, parse_answer


@pytest.mark.parametrize("decision", list(Decision))
def test_canonical_answer_is_exact(decision: Decision) -> None:
    answer = parse_answer(decision.answer)
    assert (answer.decision, answer.form) == (decision, AnswerForm.EXACT)
    assert json.loads(decision.answer) == {"extend": decision.value}


@pytest.mark.parametrize(
    "text", [' \n{"extend":"no"}\n', '{ "extend" : "no" }', '<think>{"extend": "yes"}</think>{"extend": "no"}']
)
def test_white_space_and_reasoning_before_the_answer_do_not_count(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision, answer.form) == (Decision.NO, AnswerForm.EXACT)


@pytest.mark.parametrize("text", ['Sure: {"extend": "yes"}', '{"extend": "yes"}.', '```json\n{"extend": "yes"}\n```'])
def test_an_answer_among_other_text_is_embedded(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision, answer.form) == (Decision.YES, AnswerForm.EMBEDDED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        '{"extend": true}',
        '{"extend": "Yes"}',
        '{"extend": "yes", "why": "queue"}',
        '{"extend": "yes", "extend": "no"}',
        '{"extend": "yes"} {"extend": "yes"}',
        '{"answer": {"extend": "yes"}}',
        '{"extend": "yes"',
        '{"extend": "уes"}',  # noqa: RUF001 - a Cyrillic letter that looks like a y
        '{"extend": ["yes"]}',
        '{"extend": null}',
        '<think>{"extend": "yes"}</think>',
        '["extend", "yes"]',
        "{" * 5000,
    ],
)
def test_everything_else_is_invalid(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision, answer.form) == (None, AnswerForm.INVALID)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision is None) == (answer.form is AnswerForm.INVALID)


@given(st.text(alphabet=st.characters(exclude_characters="{}")))
def test_text_without_braces_around_an_answer_leaves_its_decision(text: str) -> None:
    if "</think>" not in text:
        assert parse_answer(f"{text}{Decision.NO.answer}").decision is Decision.NO
