from typing import Any

import pytest

from tsc.controllers.static_copy import is_plain_static, static_copy, with_yellow
from tsc.errors import NotApplicable
from tsc.sumo.signal_program import Phase, SignalPlan


def _plan_of(plan_type: str, *phases: tuple[str, float, tuple[int, ...]]) -> SignalPlan:
    return SignalPlan(
        junction_id="J",
        program_id="0",
        type=plan_type,
        offset_s=5,
        is_for_vehicles=(True, True, True),
        phases=tuple(
            Phase(state=state, duration_s=duration_s, min_duration_s=1, max_duration_s=90, next_phases=next_phases)
            for state, duration_s, next_phases in phases
        ),
    )


def _states(plan: SignalPlan) -> list[str]:
    return [phase.state for phase in plan.phases]


def test_a_copy_has_the_phases_their_durations_and_the_offset() -> None:
    plan = _plan_of("actuated", ("Gr", 30, (1,)), ("yr", 3, ()), ("rG", 20, (3,)), ("ry", 4, (0,)))
    copy = static_copy(plan)
    assert (copy.type, copy.offset_s) == ("static", 5)
    assert [(phase.state, phase.duration_s) for phase in copy.phases] == [("Gr", 30), ("yr", 3), ("rG", 20), ("ry", 4)]
    assert is_plain_static(copy) and not is_plain_static(plan)
    logic: Any = copy.element()
    assert [dict(phase.attrib) for phase in logic][1] == {"duration": "3", "state": "yr"}


def test_a_static_program_with_bounds_that_sumo_ignores_needs_no_copy() -> None:
    assert is_plain_static(_plan_of("static", ("Gr", 30, ()), ("yr", 3, ()), ("rG", 20, ()), ("ry", 4, ())))


def test_a_copy_of_a_program_with_several_ways_serves_every_stage_by_ways_it_has() -> None:
    """Grr leads over one yellow to rGr, and over another yellow to rrG; both lead back to Grr."""
    ways = (("Grr", 30, (1, 3)), ("yrr", 3, (2,)), ("rGr", 20, (5,)), ("yrr", 3, (4,)), ("rrG", 20, (6,)))
    plan = _plan_of("actuated", *ways, ("ryr", 3, (0,)), ("rry", 3, (0,)))
    assert _states(static_copy(plan)) == ["Grr", "yrr", "rGr", "ryr", "Grr", "yrr", "rrG", "rry"]


def test_a_static_program_that_jumps_is_put_in_its_order() -> None:
    plan = _plan_of("static", ("Gr", 30, (2,)), ("ry", 4, (0,)), ("yr", 3, (3,)), ("rG", 20, (1,)))
    assert not is_plain_static(plan)
    assert _states(static_copy(plan)) == ["Gr", "yr", "rG", "ry"]


def test_a_program_with_a_stage_that_no_way_leads_to_is_refused() -> None:
    plan = _plan_of("actuated", ("Gr", 30, (1,)), ("yr", 3, (0,)), ("rG", 20, (0,)))
    with pytest.raises(NotApplicable, match="no way from phase 0 to phase 2"):
        static_copy(plan)


def test_a_nema_program_is_refused_as_it_has_no_yellow_among_its_phases() -> None:
    with pytest.raises(NotApplicable, match="NEMA.*give the junction"):
        static_copy(_plan_of("NEMA", ("Gr", 30, ()), ("rG", 20, ())))


def test_a_length_of_yellow_leaves_greens_and_all_red_alone() -> None:
    plan = _plan_of("static", ("Gr", 30, ()), ("yr", 5, ()), ("rr", 2, ()), ("rG", 20, ()), ("ry", 4, ()))
    assert [phase.duration_s for phase in with_yellow(plan, 3).phases] == [30, 3, 2, 20, 3]
