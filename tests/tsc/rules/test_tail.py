"""The tail: how often it decides, what it leaves alone, and the rule of actuated control."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.hand_made_student import write_longest_queue_student
from tests.tsc.sumo_process import in_new_process
from tsc.cost.continuation import continue_with, outcomes_by_fork
from tsc.cost.outcome import OutcomeSettings, import_measures
from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.actuated import DETECTOR_GAP_S, MAX_GAP_S, VEHICLE_LENGTH_M, Actuated
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

YES, NO = Decision.YES, Decision.NO
SPEED_LIMIT_M_PER_S = 13.89
DETECTOR_M = DETECTOR_GAP_S * SPEED_LIMIT_M_PER_S


def _with_vehicles(files: SumoFiles, folder: Path, vehicles: str = "") -> SumoFiles:
    path = folder / "some.rou.xml"
    path.write_text(f"<routes>{vehicles}</routes>")
    return replace(files, route_files=(path,))


def _green_ends_s(files: SumoFiles, decision: Decision, settings: OutcomeSettings, from_s: int) -> float:
    """When the first green ends after `decision` in second from_s. Continuation and green begin together."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    while control.simulation.time_s < from_s:
        control.advance({})
    elapsed_s = []
    advance = control.advance

    def noting(decisions: dict[str, Decision]) -> None:
        advance(decisions)
        elapsed_s.append(control.clocks["A0"].elapsed_green_s if control.clocks["A0"].green else None)

    control.advance = noting  # type: ignore[assignment, method-assign]
    continue_with(control, "A0", decision, settings)
    return from_s + elapsed_s.index(None)


@pytest.mark.parametrize(
    ("decision", "step_s", "from_s", "ends_s"),
    [
        (NO, 1, 10, 10),
        (YES, None, 10, 15),
        # the answer holds the green to its next decision point, however often the tail decides
        (YES, 1, 10, 15),
        # datasets of other generators decide between our decision points
        (YES, 1, 12, 15),
        (YES, None, 12, 15),
    ],
)
def test_an_answer_holds_until_the_next_decision_point(
    files: SumoFiles, tmp_path: Path, decision: Decision, step_s: int | None, from_s: int, ends_s: int
) -> None:
    settings = OutcomeSettings(horizon_s=20, tail="gap_out", tail_step_s=step_s)
    empty = _with_vehicles(files, tmp_path)
    assert in_new_process(_green_ends_s, empty, decision, settings, from_s) == ends_s


# It passes the stop line between two decision points. After that, gap-out has nothing to wait for.
ONE_VEHICLE = '<vehicle id="one" depart="0" departSpeed="max" departPos="0"><route edges="top0A0 A0bottom0"/></vehicle>'


def test_a_tail_that_decides_every_second_ends_a_green_between_decision_points(
    files: SumoFiles, tmp_path: Path
) -> None:
    one = _with_vehicles(files, tmp_path, ONE_VEHICLE)
    every_5_s, every_1_s = (
        in_new_process(_green_ends_s, one, YES, OutcomeSettings(tail="gap_out", tail_step_s=step_s), 15)
        for step_s in (None, 1)
    )
    assert every_5_s % 5 == 0
    assert every_5_s - 5 < every_1_s < every_5_s


def test_a_step_that_does_not_divide_the_extension_is_refused(files: SumoFiles, tmp_path: Path) -> None:
    settings = OutcomeSettings(tail_step_s=2)
    with pytest.raises(ConfigError, match=r"tail_step_s is 2, .* every 5 s .*: choose a divisor of that \(1, 5\)"):
        in_new_process(_green_ends_s, _with_vehicles(files, tmp_path), YES, settings, 10)


def _actuated_against_the_vehicle(files: SumoFiles, first_asked_s: int) -> tuple[float, float]:
    """When the vehicle's rear leaves the detector, and the first second after that in which the rule ends the green."""
    simulation = Simulation(files)
    control = SignalControl(simulation, Timing(min_green_s=1, green_extension_s=1, max_green_s=100))
    control.start()
    rule = Actuated()
    before: tuple[float, float] | None = None
    left_s = None
    lane = control.program("A0").stages[0].incoming_lanes
    while True:
        control.advance({})
        now_s = simulation.time_s
        vehicles = [vehicle for name in lane for vehicle in simulation.approaching(name)]
        beyond_m = [DETECTOR_M - vehicle.distance_m - VEHICLE_LENGTH_M for vehicle in vehicles]
        if before and left_s is None and beyond_m and beyond_m[0] > 0:
            left_s = before[0] + -before[1] / (beyond_m[0] - before[1])
        before = (now_s, beyond_m[0]) if beyond_m else None
        if now_s < first_asked_s:
            continue
        decision = rule.decide(control, ["A0"])["A0"]
        if left_s is not None and decision is NO:
            return left_s, now_s


def test_actuated_ends_a_green_3_s_after_the_last_vehicle_left_the_detector(files: SumoFiles, tmp_path: Path) -> None:
    one = _with_vehicles(files, tmp_path, ONE_VEHICLE)
    left_s, ended_s = in_new_process(_actuated_against_the_vehicle, one, 1)
    assert left_s + MAX_GAP_S <= ended_s < left_s + MAX_GAP_S + 1


def test_actuated_estimates_what_was_before_it_was_asked(files: SumoFiles, tmp_path: Path) -> None:
    one = _with_vehicles(files, tmp_path, ONE_VEHICLE)
    left_s, ended_s = in_new_process(_actuated_against_the_vehicle, one, 1)
    # first asked while the vehicle is between detector and stop line
    asked_late = in_new_process(_actuated_against_the_vehicle, one, int(left_s) + 1)
    assert asked_late == (left_s, pytest.approx(ended_s, abs=1))


def _costs_of_every_decision(files: SumoFiles, settings: OutcomeSettings) -> list[tuple[float, float]]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    costs = []
    for _ in range(120):
        due = control.due_junctions()
        for name in due:
            outcomes = outcomes_by_fork(control, name, settings)
            costs.append((outcomes.yes, outcomes.no))
        control.advance({name: YES if len(costs) % 2 else NO for name in due})
    return costs


def test_a_student_is_a_tail(files: SumoFiles, tmp_path: Path) -> None:
    student = write_longest_queue_student(tmp_path / "student.json")
    costs = {
        tail: in_new_process(_costs_of_every_decision, files, OutcomeSettings(tail=tail).with_sources())
        for tail in ("longest_queue", "max_pressure", f"student:{student}")
    }
    assert costs[f"student:{student}"] == costs["longest_queue"] != costs["max_pressure"]


def test_labels_by_a_student_that_has_changed_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "student.json"
    with pytest.raises(ConfigError, match=r"student\.json does not exist: make it with scripts/fit_student.py"):
        OutcomeSettings(tail=f"student:{path}").with_sources()
    write_longest_queue_student(path)
    before = OutcomeSettings(tail=f"student:{path}").with_sources()
    assert before.covers(OutcomeSettings(tail=f"student:{path}").with_sources())
    write_longest_queue_student(path, teacher="another one")
    assert not before.covers(OutcomeSettings(tail=f"student:{path}").with_sources())
    with pytest.raises(ConfigError, match="was changed after the settings were read"):
        import_measures(before)
    with pytest.raises(ConfigError, match="by an absolute path"):
        OutcomeSettings(tail="student:student.json")
