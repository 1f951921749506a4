"""SUMO's actuated and delay-based control, second by second on the four_way net."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.signal_plans import plan_signals
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

TIMING = Timing(min_green_s=7, max_green_s=25)
# the first stage serves top and bottom, the second right and left
NORTH_SOUTH, EAST_WEST = 0, 2

Run = tuple[int, int]


def _phases(files: SumoFiles, kind: str, folder: Path, seconds: int, timing: Timing) -> tuple[str, list[Run]]:
    """The type of the running program, and its phases in order with their durations (s), without the first and the
    last phase, which are cut off."""
    simulation = Simulation(plan_signals(kind, files, SignalSettings(timing=timing), seconds, folder).files)
    phases = []
    for _ in range(seconds):
        simulation.step()
        phases.append(simulation.phase_index("A0"))
    runs = [(phase, len(list(shown))) for phase, shown in groupby(phases)]
    return simulation.signal_plan("A0").type, runs[1:-1]


def _with_flows(files: SumoFiles, folder: Path, top_veh_per_h: int, right_veh_per_h: int) -> SumoFiles:
    path = folder / "flows.rou.xml"
    path.write_text(
        "<routes>"
        f'<flow id="top" begin="0" end="3600" vehsPerHour="{top_veh_per_h}" departLane="best" from="top0A0" '
        'to="A0bottom0"/>'
        f'<flow id="right" begin="0" end="3600" vehsPerHour="{right_veh_per_h}" departLane="best" from="right0A0" '
        'to="A0left0"/></routes>'
    )
    return replace(files, route_files=(path,))


def _greens_s(runs: list[Run], phase: int) -> list[int]:
    return [length for shown, length in runs if shown == phase]


@pytest.mark.parametrize("kind", ["actuated", "delay_based"])
def test_greens_keep_to_the_bounds_and_yellows_last_as_in_the_net(files: SumoFiles, tmp_path: Path, kind: str) -> None:
    running, runs = in_new_process(_phases, files, kind, tmp_path, 300, TIMING)
    greens_s = _greens_s(runs, NORTH_SOUTH) + _greens_s(runs, EAST_WEST)
    assert running == kind
    assert len(greens_s) >= 8
    assert min(greens_s) >= TIMING.min_green_s and max(greens_s) <= TIMING.max_green_s
    assert len(set(greens_s)) > 2
    assert set(_greens_s(runs, 1) + _greens_s(runs, 3)) == {3}


def test_delay_based_control_is_another_one_than_actuated_control(files: SumoFiles, tmp_path: Path) -> None:
    _, actuated = in_new_process(_phases, files, "actuated", tmp_path, 200, TIMING)
    _, delay_based = in_new_process(_phases, files, "delay_based", tmp_path, 200, TIMING)
    assert actuated != delay_based


def test_actuated_control_runs_to_the_maximum_green_for_one_saturated_side_only(
    files: SumoFiles, tmp_path: Path
) -> None:
    one_sided = _with_flows(files, tmp_path, top_veh_per_h=5000, right_veh_per_h=40)
    _, runs = in_new_process(_phases, one_sided, "actuated", tmp_path, 300, TIMING)
    assert set(_greens_s(runs, NORTH_SOUTH)[1:]) == {TIMING.max_green_s}
    assert set(_greens_s(runs, EAST_WEST)) == {TIMING.min_green_s}


def test_what_lies_between_the_stages_stays_fixed_also_where_the_plan_has_bounds_there(
    files: SumoFiles, tmp_path: Path
) -> None:
    """A sliver of 4 s with its own bounds, as in real plans, and an all-red of 2 s."""
    program = tmp_path / "program.add.xml"
    program.write_text(
        '<additional><tlLogic id="A0" type="static" programID="real" offset="0">'
        '<phase duration="20" minDur="5" maxDur="90" state="GGGGgrrrrrGGGGgrrrrr"/>'
        '<phase duration="4" minDur="1" maxDur="90" state="rrrGGrrrrrrrrGGrrrrr"/>'
        '<phase duration="5" state="rrryyrrrrrrrryyrrrrr"/><phase duration="2" state="rrrrrrrrrrrrrrrrrrrr"/>'
        '<phase duration="20" minDur="5" maxDur="90" state="rrrrrGGGGgrrrrrGGGGg"/>'
        '<phase duration="4" state="rrrrryyyyyrrrrryyyyy"/>'
        "</tlLogic></additional>"
    )
    real = replace(files, additional_files=(program,))
    running, runs = in_new_process(_phases, real, "actuated", tmp_path, 200, TIMING)
    assert running == "actuated"
    assert [set(_greens_s(runs, phase)) for phase in (1, 2, 3, 5)] == [{4}, {5}, {2}, {4}]
    assert all(TIMING.min_green_s <= length <= TIMING.max_green_s for length in _greens_s(runs, 0) + _greens_s(runs, 4))
