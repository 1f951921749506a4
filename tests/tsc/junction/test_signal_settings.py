"""Where the bounds of greens come from, on a program written by hand."""

from dataclasses import replace

import pytest

from tsc.errors import ConfigError
from tsc.junction.signal_settings import (
    FROM_GREENS,
    FROM_PLANNED,
    FROM_PROGRAM,
    FROM_SAME,
    FROM_TIMING,
    SignalSettings,
)
from tsc.sumo.signal_program import Phase, SignalPlan

# a green that is planned, one with bounds of its own, one in which the signal rests
PLAN = SignalPlan(
    junction_id="A0",
    program_id="0",
    type="static",
    offset_s=0,
    phases=(
        Phase(state="Grr", duration_s=70),
        Phase(state="yrr", duration_s=3),
        Phase(state="rGr", duration_s=20, min_duration_s=7, max_duration_s=33),
        Phase(state="ryr", duration_s=3),
        Phase(state="rrG", duration_s=10_000),
        Phase(state="rry", duration_s=3),
    ),
    is_for_vehicles=(True, True, True),
)
NET = SignalSettings(bounds_from="net")


def test_each_source_goes_with_its_bounds() -> None:
    assert NET.bounds_of(PLAN) == ((10, 70), (7, 33), (10, 60))
    assert NET.source_of(PLAN) == (FROM_PLANNED, FROM_PROGRAM, FROM_TIMING)


def test_every_bound_of_an_actuated_program_is_the_programs() -> None:
    actuated = replace(PLAN, type="actuated")
    assert NET.bounds_of(actuated)[0] == (70, 70)
    assert NET.source_of(actuated) == (FROM_PROGRAM,) * 3


def test_the_same_bounds_and_those_of_the_file_have_their_own_words() -> None:
    assert SignalSettings().source_of(PLAN) == (FROM_SAME,) * 3
    given = replace(NET, greens={"A0": ((5, 9),) * 3})
    assert (given.bounds_of(PLAN), given.source_of(PLAN)) == (((5, 9),) * 3, (FROM_GREENS,) * 3)
    with pytest.raises(ConfigError, match="'A0' has bounds for 1 stages"):
        replace(NET, greens={"A0": ((5, 9),)}).source_of(PLAN)
