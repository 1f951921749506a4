"""Webster's plans from SUMO's tlsCycleAdaptation, on the four_way net."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.signal_plans import plan_signals
from tsc.controllers.webster import webster_plans
from tsc.errors import NotApplicable
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalPlan
from tsc.sumo.simulation import Simulation


def _plans(files: SumoFiles, timing: Timing, folder: Path) -> list[SignalPlan]:
    plans = plan_signals("static", files, SignalSettings(timing=timing), 3600, folder).plans
    return webster_plans(files, list(plans.values()), 3600, folder)


def _durations_s(files: SumoFiles, folder: Path, timing: Timing) -> list[float]:
    [plan] = in_new_process(_plans, files, timing, folder)
    assert plan.junction_id == "A0" and plan.type == "static"
    return [phase.duration_s for phase in plan.phases]


def _with_trips(files: SumoFiles, folder: Path, *, top_period_s: int | None, right_period_s: int | None) -> SumoFiles:
    """One hour with a vehicle every so many seconds, straight on from the top and from the right."""
    trips = [
        (second, f'<trip id="{entry}{second}" depart="{second}" from="{entry}0A0" to="A0{leave}0"/>')
        for entry, leave, period_s in (("top", "bottom", top_period_s), ("right", "left", right_period_s))
        if period_s is not None
        for second in range(0, 3600, period_s)
    ]
    path = folder / "trips.rou.xml"
    path.write_text(f"<routes>{''.join(trip for _, trip in sorted(trips))}</routes>")
    return replace(files, route_files=(path,))


def test_a_case_worked_by_hand(files: SumoFiles, tmp_path: Path) -> None:
    """1800 veh/h on three lanes of 1800 veh/h each are 1/3, 900 are 1/6, together 1/2. Two stages lose 2 x 4 s, so the
    cycle is (1.5 x 8 s + 5 s) / (1 - 1/2) = 34 s, of which 26 s are effective green: two thirds and one third of
    that, less the yellow of 3 s, plus the lost 4 s."""
    demand = _with_trips(files, tmp_path, top_period_s=2, right_period_s=4)
    assert _durations_s(demand, tmp_path, Timing(min_green_s=5)) == [18, 3, 10, 3]


def test_no_green_is_below_the_minimum(files: SumoFiles, tmp_path: Path) -> None:
    demand = _with_trips(files, tmp_path, top_period_s=2, right_period_s=60)
    north_south_s, _, east_west_s, _ = _durations_s(demand, tmp_path, Timing(min_green_s=12))
    assert north_south_s > east_west_s == 12


def _program(files: SumoFiles, folder: Path, phases: str) -> SumoFiles:
    path = folder / "program.add.xml"
    path.write_text(
        f'<additional><tlLogic id="A0" type="static" programID="own" offset="9">{phases}</tlLogic></additional>'
    )
    return replace(files, additional_files=(path,))


def test_yellow_and_all_red_stay_those_of_the_running_program(files: SumoFiles, tmp_path: Path) -> None:
    """The running program is not the one in the net file, which the tool would read if we did not replace it."""
    phases = (
        '<phase duration="30" state="GGGGgrrrrrGGGGgrrrrr"/><phase duration="5" state="yyyyyrrrrryyyyyrrrrr"/>'
        '<phase duration="2" state="rrrrrrrrrrrrrrrrrrrr"/><phase duration="30" state="rrrrrGGGGgrrrrrGGGGg"/>'
        '<phase duration="6" state="rrrrryyyyyrrrrryyyyy"/>'
    )
    demand = _with_trips(files, tmp_path, top_period_s=2, right_period_s=4)
    durations_s = _durations_s(_program(demand, tmp_path, phases), tmp_path, Timing(min_green_s=5))
    assert durations_s[1:3] + durations_s[4:] == [5, 2, 6]
    assert durations_s[0] > durations_s[3]


def _running_program(files: SumoFiles, folder: Path) -> SignalPlan:
    return Simulation(plan_signals("webster", files, SignalSettings(), 3600, folder).files).signal_plan("A0")


def test_the_plan_is_what_sumo_runs(files: SumoFiles, tmp_path: Path) -> None:
    demand = _with_trips(files, tmp_path, top_period_s=2, right_period_s=4)
    plan = in_new_process(_running_program, demand, tmp_path)
    assert (plan.program_id, plan.phases[0].duration_s) == ("tsc_webster", 18)


def test_it_does_not_apply_without_demand(files: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="names none"):
        in_new_process(_plans, replace(files, route_files=()), Timing(), tmp_path)
    empty = _with_trips(files, tmp_path, top_period_s=None, right_period_s=None)
    with pytest.raises(NotApplicable, match="no vehicle"):
        in_new_process(_plans, empty, Timing(), tmp_path)


def test_it_does_not_apply_where_links_and_letters_are_not_one_to_one(files: SumoFiles, tmp_path: Path) -> None:
    phases = (
        '<phase duration="30" state="GGGGgrrrrrGGGGgrrrrrr"/><phase duration="5" state="yyyyyrrrrryyyyyrrrrrr"/>'
        '<phase duration="30" state="rrrrrGGGGgrrrrrGGGGgr"/><phase duration="5" state="rrrrryyyyyrrrrryyyyyr"/>'
    )
    with pytest.raises(NotApplicable, match="20 links of junction 'A0' and the 21 letters"):
        in_new_process(_plans, _program(files, tmp_path, phases), Timing(), tmp_path)
