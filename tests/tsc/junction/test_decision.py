import inspect
import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsc.junction.decision import AnswerForm, Decision, parse_answer


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
        '{"extend": {"extend": "yes"}}',
        '{"extend": "yes"}{',
        '{{"extend": "yes"}}',
        '{"extend": NaN}',
        '{"extend": 1e999}',
        '{"extend": "\\ud800"}',  # half a surrogate pair, escaped
        "\ud83d",  # and as it is
        "｛＂extend＂: ＂yes＂｝",  # noqa: RUF001 - full-width braces and quotes
        '{"extend": "yes"} </think>',
        '</think>{"extend": "yes"}</think>',
        "\x00" * 100_000,
        " " * 100_000,
    ],
)
def test_everything_else_is_invalid(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision, answer.form) == (None, AnswerForm.INVALID)


HOSTILE = {
    "opened objects": "{" * 100_000,
    "nested objects": '{"a":' * 20_000,
    "nested arrays": '{"extend":' + "[" * 100_000,
    "nested arrays that close": '{"extend":' + "[" * 2000 + "]" * 2000 + "}",
    "many answers": '{"extend": "yes"}' * 6000,
    "long number": '{"extend": ' + "9" * 100_000 + "}",
    "number below Python's limit": '{"extend": ' + "9" * 4050 + "}",
    "exponent": '{"extend": 1e' + "9" * 4050 + "}",
    "many keys": "{" + ",".join(f'"{number}": 1' for number in range(10_000)) + "}",
    "one key often": "{" + '"extend": "yes", ' * 6000 + '"extend": "no"}',
    "open string": '{"extend": "' + "y" * 100_000,
    "escapes": '{"extend": "' + "\\u0079" * 16_000 + '"}',
    "white space inside": '{"extend":' + " " * 100_000 + '"yes"}',
    "ends of thoughts": "</think>" * 12_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_of_100_kb_is_invalid_and_costs_milliseconds(text: str) -> None:
    took_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        assert parse_answer(text).form is AnswerForm.INVALID
        took_s.append(time.perf_counter() - began_s)
    assert min(took_s) < 0.01  # 0.1 ms on an idle machine


@pytest.mark.parametrize("depth_left", range(30, 200, 10))
def test_an_answer_is_read_however_deep_the_caller_is(depth_left: int) -> None:
    def at_depth(calls_left: int) -> AnswerForm:
        if calls_left:
            return at_depth(calls_left - 1)
        return parse_answer('{"extend":' + "[" * 500 + "]" * 500 + "}").form

    depth = len(inspect.stack(0))
    assert at_depth(sys.getrecursionlimit() - depth - depth_left) is AnswerForm.INVALID


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('<think>{"extend": "no"}</think>{"extend": "yes"}', AnswerForm.EXACT),
        ('<think>a</think>b</think>{"extend": "yes"}', AnswerForm.EXACT),
        ('</think>{"extend": "yes"}', AnswerForm.EXACT),
        ('<think>never closed {"extend": "yes"}', AnswerForm.EMBEDDED),
        ('<think></think>\n\nYes: {"extend": "yes"}', AnswerForm.EMBEDDED),
        ('</THINK>{"extend": "yes"}', AnswerForm.EMBEDDED),
        ('</think >{"extend": "yes"}', AnswerForm.EMBEDDED),
        ('<think>{"extend": "no"}</thinking>{"extend": "yes"}', AnswerForm.INVALID),
        ('{"extend": "yes"}</think>', AnswerForm.INVALID),
    ],
)
def test_only_what_follows_the_last_end_of_thought_counts(text: str, form: AnswerForm) -> None:
    assert parse_answer(text).form is form
    assert parse_answer(text).decision is (None if form is AnswerForm.INVALID else Decision.YES)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    answer = parse_answer(text)
    assert (answer.decision is None) == (answer.form is AnswerForm.INVALID)


@given(st.text(alphabet=st.characters(exclude_characters="{}")))
def test_text_without_braces_around_an_answer_leaves_its_decision(text: str) -> None:
    if "</think>" not in text:
        assert parse_answer(f"{text}{Decision.NO.answer}").decision is Decision.NO


@pytest.mark.parametrize("text", [None, b"{}", 1.0])
def test_an_answer_that_is_not_text_is_a_fault_of_the_caller(text: object) -> None:
    with pytest.raises(TypeError, match=f"the answer is of type {type(text).__name__}: must be the decoded text"):
        parse_answer(text)  # type: ignore[arg-type]
