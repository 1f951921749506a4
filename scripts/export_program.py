"""Write a policy as a signal program that SUMO runs by itself, without Python and without a model.

Examples:
    python scripts/export_program.py --scenario mine.sumocfg --student student.json --out program.add.xml
    sumo -c mine.sumocfg --additional-files program.add.xml
    python scripts/evaluate.py --scenarios mine.sumocfg --out runs/eval/program \\
        --controllers actuated student:copy=student.json program:exported=program.add.xml

The student (scripts/fit_student.py) is a copy of a trained model, or of the labels. This program runs it on training
demand, with detectors on the approaches: lane areas up to 50 m, 50 to 100 m and farther before the stop line. For each
stage it fits a linear rule, which ends the green when a weighted sum of the vehicles on the detectors is negative. A
second round is driven by these rules, and answered by the student: there the rules meet the states that they lead to.

Writes OUT, an additional file for SUMO with the detectors and a program of the type actuated for each junction. A
controller of a city needs no more than that: a counter for each detector, and a sum for each stage. It prints the share
of the student's answers that the rules give on episodes that they were not fitted to.
"""

from __future__ import annotations

import argparse
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from recipes.models.fit_linear_rule import fit_rule
from tsc.controllers.opening import DECIDES
from tsc.controllers.signal_plans import PlannedSignals, plan_signals
from tsc.episodes.episode import run_episode
from tsc.errors import ConfigError, NotApplicable, run_main
from tsc.files import write_atomically
from tsc.junction.signal_control import SignalControl
from tsc.programs.detectors import JunctionDetectors, place_detectors
from tsc.programs.linear_rule import LinearProgram, LinearRule
from tsc.programs.tl_logic import program_element
from tsc.rules.controller import Rule
from tsc.rules.student import Student, load_student
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.scenario import Split
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.simulation import Simulation

# by junction
Detectors = Mapping[str, JunctionDetectors]
Rules = Mapping[str, Sequence[LinearRule]]


@dataclass
class Answers(Rule):
    """Lets `driver` decide, and notes what the student would have answered.

    noted: by junction and stage, the counts of the detectors with the student's answer.
    """

    driver: Rule
    student: Student
    detectors: Detectors
    noted: dict[tuple[str, int], list[tuple[list[int], bool]]] = field(default_factory=dict)

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        counts = self.detectors[junction_id].features(control.simulation.detected_veh)
        place = (junction_id, control.clocks[junction_id].stage)
        self.noted.setdefault(place, []).append((counts, self.student.extends(control, junction_id)))
        return self.driver.extends(control, junction_id)


def detectors_of(planned: PlannedSignals) -> Detectors:
    """The detectors of every controlled junction."""
    simulation = Simulation(replace(planned.files, route_files=()))
    return {
        name: place_detectors(simulation.program(name), simulation.lane_length_m, f"tsc{number}")
        for number, name in enumerate(planned.plans)
    }


def elements_of(detectors: Detectors) -> list[ElementTree.Element]:
    return [each.element() for junction in detectors.values() for each in junction.detectors]


def additional(elements: Sequence[ElementTree.Element]) -> bytes:
    root = ElementTree.Element("additional")
    root.extend(elements)
    ElementTree.indent(root, "    ")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def run(scenario: TrafficScenario, split: Split, number: int, answers: Answers, folder: Path) -> None:
    """One episode."""
    files = scenario.files(scenario.episode_seed(split, number))
    planned = plan_signals(DECIDES, files, scenario.signals, scenario.end_s, folder)
    detectors_file = folder / "detectors.add.xml"
    write_atomically(detectors_file, additional(elements_of(answers.detectors)))
    run_episode(
        replace(planned.files, additional_files=(*planned.files.additional_files, detectors_file)),
        end_s=scenario.end_s,
        settings=planned.settings(scenario.signals),
        controller=answers,
    )


def fitted(answers: Answers, planned: PlannedSignals) -> Rules:
    """A rule for each stage. A stage without decisions, whose bounds are equal, gets one that is never asked."""
    rules: dict[str, list[LinearRule]] = {}
    for name, plan in planned.plans.items():
        num_features = len(answers.detectors[name].feature_names)
        rules[name] = []
        for stage in range(len(plan.held_phases)):
            noted = answers.noted.get((name, stage), [])
            counts = np.array([each for each, _ in noted], dtype=float).reshape(len(noted), num_features)
            rules[name].append(fit_rule(counts, np.array([extends for _, extends in noted], dtype=bool)))
    return rules


def agreement(answers: Answers, rules: Rules) -> float:
    """The share of the student's answers that the rules give."""
    same = [
        rules[name][stage].extends(counts) == extends
        for (name, stage), noted in answers.noted.items()
        for counts, extends in noted
    ]
    if not same:
        raise ConfigError(
            "no green was ever to be decided about: give a scenario whose greens have room to be extended"
        )
    return float(np.mean(same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", required=True, metavar="WORD", help=WORDS_HELP)
    parser.add_argument("--student", type=Path, required=True, metavar="FILE", help="of scripts/fit_student.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="additional file to write")
    parser.add_argument(
        "--episodes", type=at_least(1), default=6, metavar="N", help="training episodes a round (default: %(default)s)"
    )
    add_scenario_options(parser, source="the scenario's own")
    arguments = parser.parse_args()
    student = Student(load_student(arguments.student))
    with tempfile.TemporaryDirectory(prefix="tsc-program-") as name:
        folder = Path(name)
        scenarios = traffic_scenarios([arguments.scenario], folder / "scenarios", settings_of(arguments))
        if len(scenarios) != 1:
            raise ConfigError(f"--scenario {arguments.scenario} is a family: name one scenario")
        (scenario,) = scenarios
        files = scenario.files(scenario.episode_seed("train", 0))
        planned = plan_signals(DECIDES, files, scenario.signals, scenario.end_s, folder)
        detectors = detectors_of(planned)
        answers = Answers(student, student, detectors)
        for number in range(2 * arguments.episodes):
            if number == arguments.episodes:
                answers.driver = LinearProgram(detectors, fitted(answers, planned))
            run(scenario, "train", number, answers, folder)
        rules = fitted(answers, planned)
        held_out = Answers(LinearProgram(detectors, rules), student, detectors)
        run(scenario, "validation", 0, held_out, folder)
    elements = elements_of(detectors)
    for name, plan in planned.plans.items():
        try:
            elements.append(program_element(plan, detectors[name], rules[name], scenario.timing.green_extension_s))
        except NotApplicable as error:
            raise ConfigError(f"junction {name!r} {error}") from error
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, additional(elements))
    print(f"{sum(map(len, answers.noted.values()))} decisions of {2 * arguments.episodes} episodes")
    print(f"the rules give {agreement(held_out, rules):.1%} of the student's answers on a validation episode")
    print(f"program: {arguments.out}")


if __name__ == "__main__":
    run_main(main)
