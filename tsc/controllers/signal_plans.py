"""Signal programs that replace the net's own for a controller, as additional files for SUMO.

A junction runs the program that is loaded last. The programs written here have the phases of the ones that they
replace, so yellow and all-red stay the net's own.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sumolib.miscutils import openz

from tsc.controllers.actuated import detector_plan
from tsc.controllers.webster import webster_plans
from tsc.errors import NotApplicable
from tsc.files import write_atomically
from tsc.junction.signal_control import controllable_programs
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalPlan
from tsc.sumo.simulation import Simulation


def plan_files(kind_name: str, files: SumoFiles, timing: Timing, end_s: float, folder: Path) -> tuple[Path, ...]:
    """Write the programs for a controller of this kind into `folder`. Returns the files to load after
    files.additional_files.

    No file is needed for `static`, nor for a controller that holds greens if all running programs are static already.
    Opens a simulation of `files` to see which programs run; the next simulation closes it.
    Raises ScenarioError, and NotApplicable if a controller of this kind cannot run the net.
    """
    if kind_name == "static":
        return ()
    running = running_plans(files)
    _refuse_timetables(files)
    match kind_name:
        case "actuated" | "delay_based":
            plans = [detector_plan(static_copy(plan), kind_name, timing) for plan in running.values()]
        case "webster":
            static_plans = [static_copy(plan) for plan in running.values()]
            plans = webster_plans(files, static_plans, timing, end_s, folder)
        case _:
            plans = [static_copy(plan) for plan in running.values() if not is_plain_static(plan)]
    if not plans:
        return ()
    additional = ElementTree.Element("additional")
    additional.extend(plan.element() for plan in plans)
    ElementTree.indent(additional, "    ")
    path = folder / f"{kind_name}.add.xml"
    write_atomically(path, ElementTree.tostring(additional))
    return (path,)


def _refuse_timetables(files: SumoFiles) -> None:
    """Raises NotApplicable if SUMO will change the programs in the course of the simulation."""
    for path in (files.net_file, *files.additional_files):
        with openz(str(path), "rb") as stream:
            if b"<WAUT" in stream.read():
                raise NotApplicable(
                    f"{path} changes the signal programs at set times (WAUT): take the WAUT elements out"
                )


def running_plans(files: SumoFiles) -> Mapping[str, SignalPlan]:
    """For each junction with two stages, in the net's order, the program of any type that runs at the begin.

    Raises ScenarioError if no junction has two stages.
    """
    # without vehicles: they are not needed here, and reading them may take long
    simulation = Simulation(replace(files, route_files=()))
    return {
        junction_id: simulation.signal_plan(junction_id)
        for junction_id in controllable_programs(simulation, switched_by_sumo=True)
    }


def is_plain_static(plan: SignalPlan) -> bool:
    """Whether the program is static (SUMO lets us end its greens) and its phases follow one another in order."""
    return plan.type == "static" and _follow_one_another(plan)


def static_copy(plan: SignalPlan) -> SignalPlan:
    """The same phases, with fixed durations, one after another.

    If phases name their next phases, the program may have several ways. The copy then makes one tour through all stages
    along ways of the program; a phase may occur in it more than once.
    Raises NotApplicable if the program does not have such a tour, or if its yellow is not among its phases (NEMA).
    """
    if plan.type == "NEMA":
        raise NotApplicable(
            f"the program {plan.program_id!r} of junction {plan.junction_id!r} is of type NEMA, whose phases have no "
            "yellow of their own: give the junction a static or actuated program"
        )
    order = range(len(plan.phases)) if _follow_one_another(plan) else _tour(plan)
    phases = tuple(
        replace(plan.phases[index], min_duration_s=None, max_duration_s=None, next_phases=()) for index in order
    )
    return replace(plan, type="static", program_id="tsc_static", phases=phases)


def _follow_one_another(plan: SignalPlan) -> bool:
    return all(ways == [(index + 1) % len(plan.phases)] for index, ways in enumerate(_ways(plan)))


def _ways(plan: SignalPlan) -> list[list[int]]:
    """For each phase, the phases that may follow it."""
    count = len(plan.phases)
    return [list(phase.next_phases) or [(index + 1) % count] for index, phase in enumerate(plan.phases)]


def _tour(plan: SignalPlan) -> list[int]:
    """Phases from the first stage by the shortest way to the nearest missing stage, and so on, and back at the end."""
    ways = _ways(plan)
    stages = [index for index, phase in enumerate(plan.phases) if phase.is_stage]
    missing = set(stages[1:])
    order = [stages[0]]
    while missing:
        order += _shortest_way(plan, ways, order[-1], missing)
        missing -= set(order)
    return order + _shortest_way(plan, ways, order[-1], {stages[0]})[:-1]


def _shortest_way(plan: SignalPlan, ways: list[list[int]], start: int, goals: set[int]) -> list[int]:
    """The phases after `start` up to the first of the goals. Raises NotApplicable."""
    found = [[start]]
    seen: set[int] = set()
    for path in found:
        for index in ways[path[-1]]:
            if index in goals:
                return [*path[1:], index]
            if index not in seen:
                seen.add(index)
                found.append([*path, index])
    raise NotApplicable(
        f"the program {plan.program_id!r} of junction {plan.junction_id!r} has no way from phase {start} to "
        f"phase {' or '.join(map(str, sorted(goals)))}: correct the attributes next of its phases"
    )
