import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.static_copy import static_copy
from tsc.errors import ConfigError, NotApplicable
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.junction.timing import Timing
from tsc.programs.detectors import JunctionDetectors, place_detectors
from tsc.programs.linear_rule import LinearProgram, LinearRule
from tsc.programs.tl_logic import check_program_file, program_element
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import Phase, SignalPlan
from tsc.sumo.simulation import Simulation

SECONDS = 280
# of two stages: near, mid and far of the first, then of the second; the present one counts for a longer green
RULES = (
    LinearRule(weights=(100, 60, -20, -70, -50, 10), bias=-35),
    LinearRule(weights=(-80, -40, 5, 100, 60, -30), bias=40),
)


def junction(files: SumoFiles) -> tuple[str, SignalPlan, JunctionDetectors]:
    simulation = Simulation(replace(files, route_files=()))
    (name,) = read_signals(simulation, switched_by_sumo=True).programs
    plan = replace(static_copy(simulation.signal_plan(name)), green_bounds=((10, 60), (7, 30)))
    return name, plan, place_detectors(simulation.program(name), simulation.lane_length_m, "d")


def with_elements(files: SumoFiles, elements: list[ElementTree.Element], file: Path) -> SumoFiles:
    root = ElementTree.Element("additional")
    root.extend(elements)
    file.write_bytes(ElementTree.tostring(root))
    return replace(files, additional_files=(*files.additional_files, file))


def _both(files: SumoFiles, green_extension_s: int, folder: Path) -> tuple[list[Any], list[Any], list[Decision]]:
    """Phase and traffic of each second under SUMO alone and under our loop, and our answers."""
    name, plan, detectors = junction(files)
    counters = [each.element() for each in detectors.detectors]

    program = program_element(plan, detectors, RULES, green_extension_s)
    alone = Simulation(with_elements(files, [*counters, program], folder / "program.add.xml"))
    seen_alone = []
    for _ in range(SECONDS):
        alone.step()
        seen_alone.append((alone.phase_index(name), alone.traffic_digest()))

    static = replace(plan, program_id="with_bounds").element()
    ours = Simulation(with_elements(files, [*counters, static], folder / "static.add.xml"))
    control = SignalControl(
        ours, Timing(green_extension_s=green_extension_s), read_signals(ours, switched_by_sumo=False).programs
    )
    control.start()
    rules = LinearProgram({name: detectors}, {name: RULES})
    seen_ours = []
    answers = []
    for _ in range(SECONDS):
        due = control.due_junctions()
        decisions = rules.decide(control, due) if due else {}
        answers += list(decisions.values())
        control.advance(decisions)
        seen_ours.append((ours.phase_index(name), ours.traffic_digest()))
    return seen_alone, seen_ours, answers


@pytest.mark.parametrize("green_extension_s", [1, 5])
def test_sumo_alone_switches_as_our_loop_does_with_the_same_rules(
    files: SumoFiles, green_extension_s: int, tmp_path: Path
) -> None:
    seen_alone, seen_ours, answers = in_new_process(_both, files, green_extension_s, tmp_path)
    assert len(set(answers)) == 2 and len(answers) > 15, "the rules have to extend some greens and end others"
    assert seen_alone == seen_ours


def test_a_stage_that_only_loses_a_link_is_asked_every_second() -> None:
    """No link turns green with it whose time could be read."""
    phases = [("GG", 20.0), ("Gy", 3.0), ("Gr", 20.0), ("yr", 3.0)]
    plan = SignalPlan(
        junction_id="J",
        program_id="0",
        type="static",
        offset_s=0,
        phases=tuple(Phase(state=state, duration_s=duration_s) for state, duration_s in phases),
        is_for_vehicles=(True, True),
        green_bounds=((5, 50), (5, 50)),
    )
    detectors = JunctionDetectors(detectors=(), counts=({"near": ("d0",)}, {"near": ("d0", "d1")}))
    rules = [LinearRule(weights=(2, 0), bias=-1)] * 2
    program = program_element(plan, detectors, rules, 5)
    conditions = {each.get("id"): each.get("value") for each in program.findall("condition")}
    assert conditions == {
        "near_0": "a:d0",
        "near_1": "a:d0 + a:d1",
        "end_0": "( 2 * near_0 + -1 < 0 ) and ( ( g:0 - 5 ) % 5 = 0 )",
        "end_1": "2 * near_0 + -1 < 0",
    }
    ends = [phase.get("earlyTarget") for phase in program.findall("phase")]
    assert ends == [None, "end_0", None, "end_1"]


def test_a_stage_held_in_several_phases_is_refused() -> None:
    phases = [("G", 20.0), ("G", 20.0), ("y", 3.0)]
    plan = SignalPlan(
        junction_id="J",
        program_id="0",
        type="static",
        offset_s=0,
        phases=tuple(Phase(state=state, duration_s=duration_s) for state, duration_s in phases),
        is_for_vehicles=(True,),
        green_bounds=((5, 50),),
    )
    with pytest.raises(NotApplicable, match="several phases"):
        program_element(plan, JunctionDetectors(detectors=(), counts=({},)), [LinearRule(weights=(), bias=1)], 5)


def test_a_file_without_such_a_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.add.xml"
    with pytest.raises(ConfigError, match="cannot read the signal program"):
        check_program_file(file)
    file.write_text("<additional><tlLogic id='J' programID='0'/></additional>")
    with pytest.raises(ConfigError, match="has no program .tsc_program.: make one with"):
        check_program_file(file)
