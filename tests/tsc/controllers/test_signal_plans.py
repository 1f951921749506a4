from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.registry import rule_controller
from tsc.controllers.signal_plans import PlannedSignals, plan_signals
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError, ScenarioError, UnknownJunction
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

TIMING = Timing()


@pytest.fixture
def actuated(files: SumoFiles, tmp_path: Path) -> SumoFiles:
    """The four_way net with an actuated program whose bounds differ from ours."""
    path = tmp_path / "actuated.add.xml"
    path.write_text(
        '<additional><tlLogic id="A0" type="actuated" programID="own" offset="0">'
        '<phase duration="20" minDur="2" maxDur="99" state="GGGGgrrrrrGGGGgrrrrr"/>'
        '<phase duration="4" state="yyyyyrrrrryyyyyrrrrr"/>'
        '<phase duration="20" minDur="2" maxDur="99" state="rrrrrGGGGgrrrrrGGGGg"/>'
        '<phase duration="5" state="rrrrryyyyyrrrrryyyyy"/>'
        "</tlLogic></additional>"
    )
    return replace(files, additional_files=(path,))


def _plan(kind: str, files: SumoFiles, folder: Path, settings: SignalSettings | None = None) -> PlannedSignals:
    return plan_signals(kind, files, settings or SignalSettings(timing=TIMING), 300, folder)


@pytest.mark.parametrize("kind", ["static", "gap_out", "random", "lookahead", "llm"])
def test_a_static_net_is_left_as_it_is(files: SumoFiles, tmp_path: Path, kind: str) -> None:
    assert in_new_process(_plan, kind, files, tmp_path).files == files


def test_static_leaves_an_actuated_net_as_it_is(actuated: SumoFiles, tmp_path: Path) -> None:
    assert in_new_process(_plan, "static", actuated, tmp_path).files == actuated


def _drive(files: SumoFiles, kind: str, folder: Path | None, seconds: int) -> list[int]:
    """The phase after each second under a rule. folder: None runs it without the plans that it needs."""
    if folder is not None:
        files = _plan(kind, files, folder).files
    control = SignalControl(Simulation(files), TIMING)
    control.start()
    controller = rule_controller(kind, seed=1, lookahead=OutcomeSettings())
    phases = []
    for _ in range(seconds):
        due = control.due_junctions()
        control.advance(controller.decide(control, due) if due else {})
        phases.append(control.simulation.phase_index("A0"))
    return phases


def test_an_actuated_net_is_driven_through_its_static_copy(actuated: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="A0 runs a program of type actuated, which SUMO itself switches"):
        in_new_process(_drive, actuated, "max_pressure", None, 1)
    phases = in_new_process(_drive, actuated, "max_pressure", tmp_path, 200)
    first_yellow = phases.index(1)
    assert first_yellow % TIMING.green_extension_s == 0 and first_yellow >= TIMING.min_green_s
    assert phases[first_yellow : first_yellow + 5] == [1] * 4 + [2]
    second_yellow = phases.index(3)
    assert phases[second_yellow : second_yellow + 6] == [3] * 5 + [0]


def test_the_copy_decides_as_a_net_with_the_same_static_program(actuated: SumoFiles, tmp_path: Path) -> None:
    [path] = actuated.additional_files
    static = tmp_path / "static.add.xml"
    static.write_text(path.read_text().replace('"actuated"', '"static"'))
    of_static = in_new_process(_drive, replace(actuated, additional_files=(static,)), "longest_queue", None, 200)
    assert in_new_process(_drive, actuated, "longest_queue", tmp_path, 200) == of_static


def test_an_actuated_junction_with_one_stage_is_left_to_sumo(actuated: SumoFiles, tmp_path: Path) -> None:
    path = tmp_path / "one_stage.add.xml"
    path.write_text(
        '<additional><tlLogic id="A0" type="actuated" programID="own" offset="0">'
        '<phase duration="20" minDur="2" maxDur="99" state="GGGGgrrrrrGGGGgrrrrr"/>'
        '<phase duration="4" state="yyyyyrrrrryyyyyrrrrr"/></tlLogic></additional>'
    )
    with pytest.raises(ScenarioError, match="A0 has only one stage"):
        in_new_process(_drive, replace(actuated, additional_files=(path,)), "max_pressure", None, 1)


def _digest(files: SumoFiles, folder: Path | None) -> str:
    if folder is not None:
        _plan("llm", files, folder)
    simulation = Simulation(files)
    for _ in range(120):
        simulation.step()
    return simulation.traffic_digest()


def test_reading_the_programs_beforehand_changes_nothing_in_the_episode(files: SumoFiles, tmp_path: Path) -> None:
    assert in_new_process(_digest, files, tmp_path) == in_new_process(_digest, files, None)


def _programs_over_time(files: SumoFiles, folder: Path | None) -> set[str]:
    simulation = Simulation(files if folder is None else _plan("max_pressure", files, folder).files)
    programs = set()
    for _ in range(60):
        simulation.step()
        programs.add(simulation.program("A0").program_id)
    return programs


def test_a_timetable_of_programs_does_not_end_our_control(actuated: SumoFiles, tmp_path: Path) -> None:
    [path] = actuated.additional_files
    static = path.read_text().replace('"actuated"', '"static"')
    timetable = (
        '<WAUT id="w" refTime="0" startProg="0"><wautSwitch time="30" to="own"/></WAUT>'
        '<wautJunction wautID="w" junctionID="A0"/></additional>'
    )
    path.write_text(static.replace("</additional>", timetable))
    work = tmp_path / "work"
    work.mkdir()
    assert in_new_process(_programs_over_time, actuated, None) == {"0", "own"}
    assert in_new_process(_programs_over_time, actuated, work) == {"tsc_static"}


def _bounds(files: SumoFiles, folder: Path, settings: SignalSettings) -> dict[str, list[tuple[int, int]]]:
    """The bounds of each stage as a replay would read them, and those of the plans."""
    planned = _plan("llm", files, folder, settings)
    program = Simulation(planned.files).program("A0")
    read = [stage.green_bounds for stage in program.stages]
    assert read == list(planned.plans["A0"].green_bounds)
    return read  # type: ignore[return-value]


def test_a_stage_has_the_bounds_of_the_net(actuated: SumoFiles, files: SumoFiles, tmp_path: Path) -> None:
    net = SignalSettings(timing=TIMING, bounds_from="net")
    assert in_new_process(_bounds, actuated, tmp_path, net) == [(2, 99), (2, 99)]
    # a static program without minDur and maxDur has greens of 42 s
    assert in_new_process(_bounds, files, tmp_path, net) == [(10, 60), (10, 60)]
    short = replace(net, timing=Timing(min_green_s=50, max_green_s=55))
    assert in_new_process(_bounds, files, tmp_path, short) == [(42, 55), (42, 55)]
    long = replace(net, timing=Timing(min_green_s=5, max_green_s=30))
    assert in_new_process(_bounds, files, tmp_path, long) == [(5, 42), (5, 42)]


def test_bounds_of_single_junctions_win(files: SumoFiles, tmp_path: Path) -> None:
    own = SignalSettings(greens={"A0": ((7, 20), (9, 9))})
    assert in_new_process(_bounds, files, tmp_path, own) == [(7, 20), (9, 9)]
    with pytest.raises(ConfigError, match="'A0' has bounds for 1 stages, but its program has 2"):
        in_new_process(_bounds, files, tmp_path, SignalSettings(greens={"A0": ((7, 20),)}))


def _greens_s(files: SumoFiles, folder: Path, settings: SignalSettings, answer: Decision) -> set[tuple[int, float]]:
    """(stage, length in s) of the whole greens of five minutes."""
    planned = _plan("llm", files, folder, settings)
    control = SignalControl(Simulation(planned.files), settings.timing)
    control.start()
    seen = set()
    for _ in range(300):
        before = (control.clocks["A0"].stage, control.clocks["A0"].elapsed_green_s)
        green = control.clocks["A0"].green
        control.advance(dict.fromkeys(control.due_junctions(), answer))
        if green and not control.clocks["A0"].green:
            seen.add(before)
    return seen


def test_control_keeps_each_stage_to_its_own_bounds(files: SumoFiles, tmp_path: Path) -> None:
    own = SignalSettings(greens={"A0": ((7, 20), (9, 9))})
    assert in_new_process(_greens_s, files, tmp_path, own, Decision.NO) == {(0, 7.0), (1, 9.0)}
    assert in_new_process(_greens_s, files, tmp_path, own, Decision.YES) == {(0, 20.0), (1, 9.0)}


def test_a_junction_that_contradicts_itself_is_skipped_with_the_reason(actuated: SumoFiles, tmp_path: Path) -> None:
    [path] = actuated.additional_files
    path.write_text(path.read_text().replace('minDur="2" maxDur="99"', 'minDur="40" maxDur="30"'))
    with pytest.raises(ScenarioError, match="A0 has a stage with minDur 40 s and maxDur"):
        in_new_process(_plan, "llm", actuated, tmp_path, SignalSettings(bounds_from="net"))


def test_unknown_junctions_are_refused_with_the_known_ones(files: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(UnknownJunction, match="'A1' has no signal in .*: the signals are A0"):
        in_new_process(_plan, "llm", files, tmp_path, SignalSettings(junction_ids=("A1",)))
