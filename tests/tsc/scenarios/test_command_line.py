"""The options that say how scenarios are used."""

import argparse

import pytest

from tsc.scenarios.command_line import add_scenario_options, words_of


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--begin", "0", "--end", "900", "--teleport", "-1"],
        ["--duration", "60", "--junctions", "A0", "B0", "--green-bounds", "same", "--demand-as-filed"],
    ],
)
def test_given_options_can_be_typed_again(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_scenario_options(parser, source="the test's")
    assert words_of(parser.parse_args(words)) == words
