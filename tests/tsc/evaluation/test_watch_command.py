"""The command that the report names for its costliest decision."""

import shlex
from dataclasses import replace

import pytest

from tsc.evaluation.reference import Reference
from tsc.evaluation.reported import ReportedScenario
from tsc.evaluation.watch_command import BEFORE_S, WatchCommand
from tsc.junction.timing import Timing

SCENARIO = ReportedScenario(
    name="north",
    note="",
    begin_s=25200,
    end_s=28800,
    warm_up_s=0,
    timing=Timing(),
    junctions=["a b"],
    reference=Reference(name="static"),
)
COMMAND = WatchCommand(
    scenarios={"north": "nets/north.sumocfg"},
    controllers={"static": "static", "mine": "llm:mine=my models/a"},
    options=["--prompt", "pkg://mine:prompt"],
)


def values(command: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


@pytest.mark.parametrize(("time_s", "warm_up_s"), [(26000.0, 800 - BEFORE_S), (25210.0, 0)])
def test_the_page_begins_before_the_decision_and_shows_the_reference_too(time_s: float, warm_up_s: int) -> None:
    command = COMMAND.of(SCENARIO, "mine", {"time_s": time_s, "seed": 1003, "junction_id": "a b"})
    assert command is not None and command.startswith("bash scripts/watch.sh ")
    words = values(command)
    assert words["--scenario"] == ["nets/north.sumocfg"] and words["--prompt"] == ["pkg://mine:prompt"]
    assert words["--controllers"] == ["static", "llm:mine=my models/a"]
    assert (words["--seed"], words["--junction"], words["--warm-up"]) == (["1003"], ["a b"], [str(warm_up_s)])


def test_a_member_of_a_family_has_no_command() -> None:
    decision = {"time_s": 26000.0, "seed": 1003, "junction_id": "a b"}
    assert COMMAND.of(replace(SCENARIO, name="north_7"), "mine", decision) is None
