"""The signal programs that a controller needs in place of the net's own, as additional files for SUMO.

A junction runs the program that is loaded last. What is written here has the phases of the program that runs without
it, so yellow and all-red stay the net's own.
"""

from __future__ import annotations

import gzip
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

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
    """What to load after files.additional_files for a controller of this kind, written into `folder`.

    Opens a simulation of `files` to see which programs run, and leaves it to be closed by the next one. Empty for
    static, and where the running programs are static, as the controllers that hold greens need them.
    Raises ScenarioError, and NotApplicable where a controller of this kind cannot run the net.
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
    path = folder / f"{kind_name}.add.xml"
    write_plans(plans, path)
    return (path,)


def _refuse_timetables(files: SumoFiles) -> None:
    """Raises NotApplicable where SUMO will change the programs in the course of the simulation."""
    for path in (files.net_file, *files.additional_files):
        data = path.read_bytes()
        if b"<WAUT" in (gzip.decompress(data) if path.suffix == ".gz" else data):
            raise NotApplicable(f"{path} changes the signal programs at set times (WAUT): take the WAUT elements out")


def running_plans(files: SumoFiles) -> Mapping[str, SignalPlan]:
    """The programs that run at the begin, of any type, of each junction with two stages, in the net's order.
    Raises ScenarioError where there is none."""
    # vehicles are of no interest, and reading them may take long
    simulation = Simulation(replace(files, route_files=()))
    return {
        junction_id: simulation.signal_plan(junction_id)
        for junction_id in controllable_programs(simulation, switched_by_sumo=True)
    }


def write_plans(plans: Iterable[SignalPlan], path: Path) -> None:
    """As an additional file. Appears atomically."""
    additional = ElementTree.Element("additional")
    additional.extend(plan.element() for plan in plans)
    ElementTree.indent(additional, "    ")
    write_atomically(path, ElementTree.tostring(additional))


def is_plain_static(plan: SignalPlan) -> bool:
    """Whether SUMO leaves the ends of its greens to us, and its phases follow one another as they stand."""
    return plan.type == "static" and _follow_one_another(plan)


def static_copy(plan: SignalPlan) -> SignalPlan:
    """The same phases, with fixed durations, one after another.

    Where phases name others as the next, so that the program has several ways, the copy goes round one tour of all
    stages by ways that the program has; a phase may then stand in it more than once.
    Raises NotApplicable for a program without such a tour, or whose yellow is not among its phases (NEMA).
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
    """For each phase, the phases that it may lead to."""
    count = len(plan.phases)
    return [list(phase.next_phases) or [(index + 1) % count] for index, phase in enumerate(plan.phases)]


def _tour(plan: SignalPlan) -> list[int]:
    """From the first stage by the shortest way to the nearest stage that is still missing, and at last back."""
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
