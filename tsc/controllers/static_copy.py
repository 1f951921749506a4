"""Static copies of programs that SUMO itself switches, so that a controller can hold and end their greens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tsc.errors import NotApplicable
from tsc.sumo.signal_program import SignalPlan


def is_plain_static(plan: SignalPlan) -> bool:
    """Whether the program is static (SUMO lets us end its greens) and its phases follow one another in order."""
    return plan.type == "static" and _follow_one_another(plan)


def static_copy(plan: SignalPlan) -> SignalPlan:
    """The same phases, with fixed durations, one after another, without repetitions of a phase.

    If phases name their next phases, the program may have several ways. The copy then makes one tour through all stages
    along ways of the program; a phase may occur in it more than once.
    Raises NotApplicable, in words that follow the junction's name, if the program does not have such a tour, or if its
    yellow is not among its phases (NEMA).
    """
    if plan.type == "NEMA":
        raise NotApplicable(
            f"runs the program {plan.program_id!r} of type NEMA, whose phases have no yellow of their own: give the "
            "junction a static or actuated program"
        )
    order = range(len(plan.phases)) if _follow_one_another(plan) else _tour(plan)
    phases = tuple(replace(plan.phases[index], next_phases=()) for index in order)
    return replace(plan, type="static", program_id="tsc_static", phases=phases).without_repetitions()


def with_yellow(plan: SignalPlan, yellow_s: float) -> SignalPlan:
    """The same plan, in which every phase with a yellow light lasts `yellow_s`."""
    phases = [replace(phase, duration_s=yellow_s) if set(phase.state) & set("yY") else phase for phase in plan.phases]
    return replace(plan, phases=tuple(phases))


def _follow_one_another(plan: SignalPlan) -> bool:
    return all(ways == [(index + 1) % len(plan.phases)] for index, ways in enumerate(_ways(plan)))


def _ways(plan: SignalPlan) -> list[list[int]]:
    """For each phase, the phases that may follow it."""
    count = len(plan.phases)
    return [list(phase.next_phases) or [(index + 1) % count] for index, phase in enumerate(plan.phases)]


def _tour(plan: SignalPlan) -> list[int]:
    """Phases from the first stage by the shortest way to the nearest missing stage, and so on, and back at the end."""
    ways = _ways(plan)
    stages = [held[0] for held in plan.held_phases]
    missing = set(stages[1:])
    order = [stages[0]]
    while missing:
        order += _shortest_way(plan, ways, order[-1], missing)
        missing -= set(order)
    return order + _shortest_way(plan, ways, order[-1], {stages[0]})[:-1]


def _shortest_way(plan: SignalPlan, ways: Sequence[Sequence[int]], start: int, goals: set[int]) -> list[int]:
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
        f"runs the program {plan.program_id!r}, which has no way from phase {start} to phase "
        f"{' or '.join(map(str, sorted(goals)))}: correct the attributes next of its phases"
    )
