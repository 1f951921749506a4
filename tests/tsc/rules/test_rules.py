"""The controllers that decide by a rule, on the four_way net, with standing vehicles placed by the test."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.registry import rule_controller
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

YES, NO = Decision.YES, Decision.NO
# the lane's end, so the stop line, is at 286.4 m
FIRST_POSITION_M = 280.0
DISTANCE_M = 10.0


def _standing(files: SumoFiles, folder: Path, standing_veh: Mapping[str, int], first_m: float) -> SumoFiles:
    """The net with vehicles that stand in a row on the middle lane of the edges."""
    vehicles = [
        f'<vehicle id="{edge}-{number}" depart="0" departLane="1" departPos="stop" departSpeed="0">'
        f'<route edges="{edge}"/><stop lane="{edge}_1" endPos="{first_m - number * DISTANCE_M}" duration="9999"/>'
        "</vehicle>"
        for edge, count in standing_veh.items()
        for number in range(count)
    ]
    path = folder / "standing.rou.xml"
    path.write_text(f"<routes>{''.join(vehicles)}</routes>")
    return replace(files, route_files=(path,))


def _decisions(files: SumoFiles, name: str, seconds: int, timing: Timing) -> list[Decision]:
    """The decisions at the decision points of the first stage, which serves top and bottom, while its green is held."""
    control = SignalControl(Simulation(files), timing)
    control.start()
    controller = rule_controller(name, seed=1, lookahead=OutcomeSettings())
    decisions = []
    for _ in range(seconds):
        due = control.due_junctions()
        decisions += [controller.decide(control, due)[junction_id] for junction_id in due]
        control.advance(dict.fromkeys(due, YES))
    assert control.clocks["A0"].stage == 0
    return decisions


def _first_decision(
    files: SumoFiles, folder: Path, name: str, standing_veh: Mapping[str, int], first_m: float = FIRST_POSITION_M
) -> Decision:
    standing = _standing(files, folder, standing_veh, first_m)
    [decision] = in_new_process(_decisions, standing, name, 11, Timing())
    return decision


@pytest.mark.parametrize(
    ("top_veh", "right_veh", "decision"), [(3, 2, YES), (2, 3, NO), (2, 2, YES), (0, 1, NO), (0, 0, YES)]
)
def test_longest_queue_extends_while_no_other_stage_has_a_longer_one(
    files: SumoFiles, tmp_path: Path, top_veh: int, right_veh: int, decision: Decision
) -> None:
    standing = {"top0A0": top_veh, "right0A0": right_veh}
    assert _first_decision(files, tmp_path, "longest_queue", standing) is decision


def test_longest_queue_adds_up_the_approaches_of_a_stage(files: SumoFiles, tmp_path: Path) -> None:
    standing = {"top0A0": 2, "bottom0A0": 2, "right0A0": 3}
    assert _first_decision(files, tmp_path, "longest_queue", standing) is YES


def test_longest_queue_does_not_look_downstream_but_max_pressure_does(files: SumoFiles, tmp_path: Path) -> None:
    standing = {"top0A0": 2, "A0bottom0": 2, "right0A0": 1}
    assert _first_decision(files, tmp_path, "longest_queue", standing) is YES
    assert _first_decision(files, tmp_path, "max_pressure", standing) is NO


def test_max_pressure_extends_on_a_tie(files: SumoFiles, tmp_path: Path) -> None:
    standing = {"top0A0": 3, "A0bottom0": 1, "right0A0": 2}
    assert _first_decision(files, tmp_path, "max_pressure", standing) is YES


@pytest.mark.parametrize(("first_m", "decision"), [(242.0, YES), (241.0, NO)])
def test_gap_out_extends_for_a_vehicle_within_45_m_of_the_stop_line(
    files: SumoFiles, tmp_path: Path, first_m: float, decision: Decision
) -> None:
    assert _first_decision(files, tmp_path, "gap_out", {"top0A0": 1}, first_m) is decision


def test_gap_out_does_not_look_at_approaches_with_red(files: SumoFiles, tmp_path: Path) -> None:
    assert _first_decision(files, tmp_path, "gap_out", {"right0A0": 1}) is NO


def test_random_draws_the_same_decisions_from_the_same_seed(files: SumoFiles, tmp_path: Path) -> None:
    empty = _standing(files, tmp_path, {}, FIRST_POSITION_M)
    timing = Timing(min_green_s=1, max_green_s=60, green_extension_s=1)
    drawn = in_new_process(_decisions, empty, "random", 59, timing)
    assert drawn == in_new_process(_decisions, empty, "random", 59, timing)
    assert 15 < drawn.count(YES) < 45


@pytest.mark.parametrize("name", ["actuated", "webster", "max_presure"])
def test_a_name_that_does_not_decide_by_a_rule_is_told_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*choose one of gap_out, max_pressure, longest_queue, random"):
        rule_controller(name, seed=1, lookahead=OutcomeSettings())
