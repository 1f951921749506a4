from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.registry import rule_controller
from tsc.controllers.signal_plans import is_plain_static, plan_files, static_copy
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import NotApplicable, ScenarioError
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import Phase, SignalPlan
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


def _plan_files(kind: str, files: SumoFiles, folder: Path) -> tuple[Path, ...]:
    return plan_files(kind, files, TIMING, 300, folder)


@pytest.mark.parametrize("kind", ["static", "gap_out", "random", "lookahead", "llm"])
def test_a_static_net_is_left_as_it_is(files: SumoFiles, tmp_path: Path, kind: str) -> None:
    assert in_new_process(_plan_files, kind, files, tmp_path) == ()


def test_static_leaves_an_actuated_net_as_it_is(actuated: SumoFiles, tmp_path: Path) -> None:
    assert in_new_process(_plan_files, "static", actuated, tmp_path) == ()


def _drive(files: SumoFiles, kind: str, folder: Path | None, seconds: int) -> list[int]:
    """The phase after each second under a rule. folder: None runs it without the plans that it needs."""
    plans = () if folder is None else _plan_files(kind, files, folder)
    control = SignalControl(Simulation(replace(files, additional_files=(*files.additional_files, *plans))), TIMING)
    control.start()
    controller = rule_controller(kind, seed=1, lookahead=OutcomeSettings())
    phases = []
    for _ in range(seconds):
        due = control.due_junctions()
        control.advance(controller.decide(control, due) if due else {})
        phases.append(control.simulation.phase_index("A0"))
    return phases


def test_an_actuated_net_is_driven_through_its_static_copy(actuated: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="not of type static"):
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
    with pytest.raises(ScenarioError, match="no signal with two stages"):
        in_new_process(_drive, replace(actuated, additional_files=(path,)), "max_pressure", None, 1)


def _digest(files: SumoFiles, folder: Path | None) -> str:
    if folder is not None:
        _plan_files("llm", files, folder)
    simulation = Simulation(files)
    for _ in range(120):
        simulation.step()
    return simulation.traffic_digest()


def test_reading_the_programs_beforehand_changes_nothing_in_the_episode(files: SumoFiles, tmp_path: Path) -> None:
    assert in_new_process(_digest, files, tmp_path) == in_new_process(_digest, files, None)


def test_a_net_that_changes_programs_by_the_clock_is_refused(files: SumoFiles, tmp_path: Path) -> None:
    path = tmp_path / "waut.add.xml"
    path.write_text('<additional><WAUT id="w" refTime="0" startProg="0"/></additional>')
    with pytest.raises(NotApplicable, match="waut.add.xml.*WAUT"):
        in_new_process(_plan_files, "max_pressure", replace(files, additional_files=(path,)), tmp_path)


def _plan(plan_type: str, *phases: tuple[str, float, tuple[int, ...]]) -> SignalPlan:
    return SignalPlan(
        junction_id="J",
        program_id="0",
        type=plan_type,
        offset_s=5,
        phases=tuple(
            Phase(state=state, duration_s=duration_s, min_duration_s=1, max_duration_s=90, next_phases=next_phases)
            for state, duration_s, next_phases in phases
        ),
    )


def _states(plan: SignalPlan) -> list[str]:
    return [phase.state for phase in plan.phases]


def test_a_copy_has_the_phases_their_durations_and_the_offset() -> None:
    plan = _plan("actuated", ("Gr", 30, (1,)), ("yr", 3, ()), ("rG", 20, (3,)), ("ry", 4, (0,)))
    copy = static_copy(plan)
    assert (copy.type, copy.offset_s) == ("static", 5)
    assert [(phase.state, phase.duration_s) for phase in copy.phases] == [("Gr", 30), ("yr", 3), ("rG", 20), ("ry", 4)]
    assert is_plain_static(copy) and not is_plain_static(plan)
    logic: Any = copy.element()
    assert [dict(phase.attrib) for phase in logic][1] == {"duration": "3", "state": "yr"}


def test_a_static_program_with_bounds_that_sumo_ignores_needs_no_copy() -> None:
    assert is_plain_static(_plan("static", ("Gr", 30, ()), ("yr", 3, ()), ("rG", 20, ()), ("ry", 4, ())))


def test_a_copy_of_a_program_with_several_ways_serves_every_stage_by_ways_it_has() -> None:
    """Grr leads over one yellow to rGr, and over another yellow to rrG; both lead back to Grr."""
    ways = (("Grr", 30, (1, 3)), ("yrr", 3, (2,)), ("rGr", 20, (5,)), ("yrr", 3, (4,)), ("rrG", 20, (6,)))
    plan = _plan("actuated", *ways, ("ryr", 3, (0,)), ("rry", 3, (0,)))
    assert _states(static_copy(plan)) == ["Grr", "yrr", "rGr", "ryr", "Grr", "yrr", "rrG", "rry"]


def test_a_static_program_that_jumps_is_put_in_its_order() -> None:
    plan = _plan("static", ("Gr", 30, (2,)), ("ry", 4, (0,)), ("yr", 3, (3,)), ("rG", 20, (1,)))
    assert not is_plain_static(plan)
    assert _states(static_copy(plan)) == ["Gr", "yr", "rG", "ry"]


def test_a_program_with_a_stage_that_no_way_leads_to_is_refused() -> None:
    plan = _plan("actuated", ("Gr", 30, (1,)), ("yr", 3, (0,)), ("rG", 20, (0,)))
    with pytest.raises(NotApplicable, match="no way from phase 0 to phase 2"):
        static_copy(plan)


def test_a_nema_program_is_refused_as_it_has_no_yellow_among_its_phases() -> None:
    with pytest.raises(NotApplicable, match="NEMA.*give the junction"):
        static_copy(_plan("NEMA", ("Gr", 30, ()), ("rG", 20, ())))
