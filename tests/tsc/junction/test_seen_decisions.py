"""What a model was trained on, compared with what it is asked."""

from typing import Any

import pytest

from tsc.junction.seen_decisions import SeenDecisions
from tsc.junction.timing import Timing

SEEN = SeenDecisions.of(
    {("four_way", "A0"), ("grid", "A0"), ("grid", "B0")},
    prompt_versions=["1", "1"],
    num_stages={2, 4},
    timings={Timing(), Timing(min_green_s=5, max_green_s=50)},
)
LIKE_TRAINING: dict[str, Any] = {"prompt_version": "1", "num_stages": [3], "timings": [Timing(min_green_s=7)]}


def test_the_card_says_what_was_seen_in_one_order() -> None:
    assert SEEN.model_dump(mode="json") == {
        "scenarios": ["four_way", "grid"],
        "prompt_versions": ["1"],
        "num_junctions": 3,
        "num_stages": [2, 4],
        "min_green_s": [5, 10],
        "max_green_s": [50, 60],
        "green_extension_s": [5, 5],
    }


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"num_stages": [2, 8]}, "a junction with 8 stages (trained on 2 to 4)"),
        ({"prompt_version": "2"}, "prompts of version 2 (trained on 1)"),
        ({"timings": [Timing(min_green_s=3), Timing(min_green_s=20)]}, "a minimum green of 3 to 20 s (trained on 5 to"),
        ({"timings": [Timing(max_green_s=90)]}, "a maximum green of 90 s (trained on 50 to 60 s)"),
        ({"timings": [Timing(green_extension_s=1)]}, "an extension of 1 s (trained on 5 s)"),
    ],
)
def test_what_was_not_seen_is_told(changes: dict[str, Any], difference: str) -> None:
    (told,) = SEEN.differences(**LIKE_TRAINING | changes)
    assert told.startswith(difference)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt_version": None},
        {"num_stages": []},
        {"timings": [Timing(min_green_s=30, max_green_s=30)]},  # without a choice, so it is never asked about
    ],
)
def test_what_was_seen_or_is_not_known_is_not_told(changes: dict[str, Any]) -> None:
    assert SEEN.differences(**LIKE_TRAINING | changes) == []
