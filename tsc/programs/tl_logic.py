"""The signal program itself: SUMO's actuated type, with conditions that end a green."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsc.errors import ConfigError, NotApplicable
from tsc.junction.timing import MAX_TIMING_S
from tsc.programs.detectors import JunctionDetectors
from tsc.programs.linear_rule import LinearRule
from tsc.sumo.signal_program import SignalPlan

PROGRAM_ID = "tsc_program"


def check_program_file(path: Path) -> Path:
    """The path. Raises ConfigError if the file is not one that scripts/export_program.py has written."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"cannot read the signal program {path}: {error}") from error
    if not [logic for logic in root.iter("tlLogic") if logic.get("programID") == PROGRAM_ID]:
        raise ConfigError(f"{path} has no program {PROGRAM_ID!r}: make one with scripts/export_program.py")
    return path


def program_element(
    plan: SignalPlan, detectors: JunctionDetectors, rules: Sequence[LinearRule], green_extension_s: int
) -> ElementTree.Element:
    """SUMO's tlLogic. plan: static, with the bounds of its greens. rules: of each stage.

    From the shortest green on, SUMO tests in each second the condition of the phase that follows, and ends the green
    when it holds. The condition holds at decision points only, as in our loop: g:LINK is the time (s) for which a link
    has been green. https://sumo.dlr.de/docs/Simulation/Traffic_Lights.html (overriding default switching rules)

    Raises NotApplicable for a stage that is held in several phases.
    """
    held = plan.held_phases
    if any(len(phases) > 1 for phases in held):
        raise NotApplicable("holds a stage in several phases, between which a condition cannot choose")
    bounds = dict(zip((phases[0] for phases in held), plan.green_bounds, strict=True))
    phases = []
    for index, phase in enumerate(plan.phases):
        shortest_s, longest_s = bounds.get(index, (phase.duration_s, phase.duration_s))
        phases.append(replace(phase, min_duration_s=shortest_s, max_duration_s=longest_s))
    logic = replace(plan, type="actuated", program_id=PROGRAM_ID, phases=tuple(phases)).element()
    elements = logic.findall("phase")
    for number, (index,) in enumerate(held):
        elements[(index + 1) % len(elements)].set("earlyTarget", f"end_{number}")
    # SUMO counts the green times of links only where one of them has a bound; this one is never reached
    ElementTree.SubElement(logic, "param", key="linkMaxDur:0", value=str(MAX_TIMING_S))
    features = zip(detectors.feature_names, detectors.detectors_of_features, strict=True)
    for name, names in features:
        value = " + ".join(f"a:{each}" for each in names) or "0"
        ElementTree.SubElement(logic, "condition", id=name, value=value)
    for number, ((index,), rule) in enumerate(zip(held, rules, strict=True)):
        ends = _ends(rule, detectors.feature_names)
        link = _link_that_turns_green(plan, index)
        if link is not None and green_extension_s > 1:
            ends = f"( {ends} ) and ( ( g:{link} - {bounds[index][0]} ) % {green_extension_s} = 0 )"
        ElementTree.SubElement(logic, "condition", id=f"end_{number}", value=ends)
    return logic


def _ends(rule: LinearRule, names: Sequence[str]) -> str:
    terms = [f"{weight} * {name}" for weight, name in zip(rule.weights, names, strict=True) if weight]
    return " + ".join([*terms, str(rule.bias)]) + " < 0"


def _link_that_turns_green(plan: SignalPlan, index: int) -> int | None:
    """A link that is green in the phase and was not before; None if the phase only takes green away."""
    before, now = plan.phases[index - 1].state, plan.phases[index].state
    return next(
        (n for n, (was, letter) in enumerate(zip(before, now, strict=True)) if letter in "Gg" and was not in "Gg"), None
    )
