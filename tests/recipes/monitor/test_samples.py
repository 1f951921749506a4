"""The samples that a training kept, by step and by kind of answer."""

from pathlib import Path

import pytest

from recipes.monitor.samples import Samples, verdicts
from tests.recipes.monitor.made_runs import NO, YES, sample


@pytest.mark.parametrize(
    ("text", "traffic", "expected"),
    [
        (YES, 0.3, ("all", "right")),
        (NO, -0.3, ("all", "wrong")),
        (NO, -0.5, ("all", "wrong", "costly")),
        (YES, 0.0, ("all", "tie")),
        ("maybe", 0.0, ("all", "invalid")),
        (YES, None, ("all",)),
    ],
)
def test_an_answer_is_judged_by_the_traffic_part_of_its_score(
    text: str, traffic: float | None, expected: tuple[str, ...]
) -> None:
    parts = {} if traffic is None else {"traffic": traffic}
    assert verdicts({"text": text, "score": 0.0, **parts}) == expected


def test_samples_are_found_by_step_and_by_kind_of_answer(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        sample(1, [(YES, 0.3), (NO, -0.3), (YES, 0.3)])
        + sample(1, [(YES, 0.2)], prompt="queue south 2")
        + sample(1, [("what?", 0.0)], part="val")
        + "{broken\n"
        + sample(2, [(NO, -0.9)])
    )
    samples = Samples()
    samples.update(path)
    assert samples.steps == [1, 2]
    assert samples.num_broken == 1
    everything = samples.of(1)
    assert [(each.part, each.prompt) for each in everything] == [
        ("train", "queue north 4"), ("train", "queue south 2"), ("val", "queue north 4"),
    ]  # fmt: skip
    assert [(answer.text, answer.count) for answer in everything[0].answers] == [(YES, 2), (NO, 1)]
    assert everything[0].outcomes == {"yes": 31.0, "no": 42.5}
    [wrong] = samples.of(1, "wrong")
    assert [answer.text for answer in wrong.answers] == [NO]
    assert [each.part for each in samples.of(1, "invalid")] == ["val"]
    assert samples.of(1, "costly") == []
    assert len(samples.of(2, "costly")) == 1
    with path.open("a") as file:
        file.write(sample(3, [(YES, 0.1)]))
    samples.update(path)
    assert samples.steps == [1, 2, 3]


def test_a_repeated_step_shows_the_samples_of_the_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(sample(1, [(YES, 0.3)]) + sample(2, [(YES, 0.3)]) + sample(2, [(NO, -0.3)], prompt="new")[:-30])
    samples = Samples()
    samples.update(path)
    assert samples.of(2)[0].prompt == "queue north 4"
    with path.open("a") as file:
        # what recipes/verl_plugins/samples_file.py does after a kill in the middle of a line
        file.write("\n" + sample(1, [(NO, -0.3)], prompt="again") + sample(2, [(NO, -0.3)], prompt="again"))
    samples.update(path)
    assert [each.prompt for each in samples.of(2)] == ["again"]
    assert [each.prompt for each in samples.of(1)] == ["again"]
