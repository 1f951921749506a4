"""Stages of a junction's signal program.

A stage is a time in which the same movements of vehicles have green. It begins when a movement gets green or loses it,
and ends when the next one does. Consecutive phases in which the same links for vehicles are green are one stage, even
if pedestrians get red in between or the program repeats a phase.

Of these phases, the stage is held in the ones that show the same signals for the longest time. The other phases run as
the program says, and so do all phases between two stages: yellow, all-red, pedestrian clearance, and greens shorter
than MIN_STAGE_DURATION_S, which only clear the junction. A phase without green for vehicles is never a stage.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from tsc.errors import ScenarioError

MIN_STAGE_DURATION_S = 5.0

# A junction sees at least this far, if the road is long enough: up to where the observation's `far` begins.
APPROACH_M = 100.0

# The parameter of a program that gives each of its stages its own bounds: `MIN:MAX MIN:MAX …`, in whole seconds.
GREEN_BOUNDS_PARAMETER = "green_bounds_s"

GreenBounds = tuple[int, int]
"""The shortest and the longest green of a stage, in s."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase as in SUMO: one letter for each link (G, g, y, r, …), and its duration in the program.

    min_duration_s, max_duration_s: bounds of a phase whose end SUMO chooses. Where the program does not give them, both
    are the duration, or None.
    next_phases: the phases that may follow; empty if the next phase of the program follows.
    """

    state: str
    duration_s: float
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    next_phases: tuple[int, ...] = ()

    @property
    def has_bounds(self) -> bool:
        return {self.min_duration_s, self.max_duration_s} - {None, self.duration_s} != set()


def green_bounds_of(text: str, junction_id: str) -> tuple[GreenBounds, ...]:
    """Reads the value of GREEN_BOUNDS_PARAMETER; an empty text has no bounds. Raises ScenarioError."""
    bounds = []
    for word in text.split():
        shortest, _, longest = word.partition(":")
        if not (shortest.isdecimal() and longest.isdecimal() and 1 <= int(shortest) <= int(longest)):
            raise ScenarioError(
                f"the parameter {GREEN_BOUNDS_PARAMETER} of the program of junction {junction_id!r} is {text!r}: give "
                "each stage MIN:MAX in whole seconds, at least 1 and not above the maximum"
            )
        bounds.append((int(shortest), int(longest)))
    return tuple(bounds)


def held_phases(phases: Sequence[Phase], is_for_vehicles: Sequence[bool]) -> list[tuple[int, ...]]:
    """For each stage, the phases in which it is held, in the order of the program, which begins again after its end.

    is_for_vehicles: of each link, whether vehicles use it; the other links are pedestrian crossings.
    """

    def movements(index: int) -> tuple[int, ...]:
        """The links for vehicles that are green. None of them are while any link for vehicles is yellow."""
        letters = [
            letter if vehicles else "r" for letter, vehicles in zip(phases[index].state, is_for_vehicles, strict=False)
        ]
        return () if set(letters) & set("yYu") else tuple(n for n, letter in enumerate(letters) if letter in "Gg")

    def runs(indices: Sequence[int], key: Callable[[int], object]) -> list[list[int]]:
        return [list(run) for _, run in groupby(indices, key)]

    # one turn of the program that begins where the movements change, so that no stage is cut in two
    first = next((n for n in range(len(phases)) if movements(n) != movements(n - 1)), 0)
    turn = [(first + n) % len(phases) for n in range(len(phases))]
    held = []
    for run in runs(turn, movements):
        if movements(run[0]):
            same_signals = runs(run, lambda index: phases[index].state)
            longest = max(same_signals, key=lambda indices: sum(phases[index].duration_s for index in indices))
            if sum(phases[index].duration_s for index in longest) >= MIN_STAGE_DURATION_S:
                held.append(tuple(longest))
    return sorted(held)


@dataclass(frozen=True, kw_only=True)
class SignalPlan:
    """A junction's program as SUMO reads it from a file.

    type: static, actuated, … is_for_vehicles: see held_phases. green_bounds: each stage's own, empty if it has none.
    """

    junction_id: str
    program_id: str
    type: str
    offset_s: float
    phases: tuple[Phase, ...]
    is_for_vehicles: tuple[bool, ...]
    green_bounds: tuple[GreenBounds, ...] = ()

    @property
    def held_phases(self) -> list[tuple[int, ...]]:
        return held_phases(self.phases, self.is_for_vehicles)

    def without_repetitions(self) -> SignalPlan:
        """The same signals for the same times, with one phase instead of consecutive equal ones."""
        phases: list[Phase] = []
        for phase in self.phases:
            if phases and phases[-1].state == phase.state:
                phases[-1] = _joined(phases[-1], phase)
            else:
                phases.append(phase)
        if len(phases) > 1 and phases[0].state == phases[-1].state:
            phases[0] = _joined(phases.pop(), phases[0])
        return replace(self, phases=tuple(phases))

    def element(self) -> ElementTree.Element:
        """SUMO's tlLogic element. Its phases follow one another in the given order; next_phases is left out."""
        logic = ElementTree.Element("tlLogic", id=self.junction_id, type=self.type, programID=self.program_id)
        logic.set("offset", f"{self.offset_s:.10g}")
        for phase in self.phases:
            element = ElementTree.SubElement(logic, "phase", duration=f"{phase.duration_s:.10g}", state=phase.state)
            for name, bound_s in (("minDur", phase.min_duration_s), ("maxDur", phase.max_duration_s)):
                if bound_s is not None and self.type != "static":  # a static phase has neither
                    element.set(name, f"{bound_s:.10g}")
        if self.green_bounds:
            value = " ".join(f"{shortest}:{longest}" for shortest, longest in self.green_bounds)
            ElementTree.SubElement(logic, "param", key=GREEN_BOUNDS_PARAMETER, value=value)
        return logic


def _joined(one: Phase, other: Phase) -> Phase:
    def total(name: str) -> float | None:
        parts = [getattr(phase, name) for phase in (one, other)]
        if parts == [None, None]:
            return None
        return sum(phase.duration_s if part is None else part for phase, part in zip((one, other), parts, strict=True))

    return replace(
        one,
        duration_s=one.duration_s + other.duration_s,
        min_duration_s=total("min_duration_s"),
        max_duration_s=total("max_duration_s"),
    )


@dataclass(frozen=True, kw_only=True)
class ApproachLane:
    """A lane on the way to a signal. It ends distance_m (m) before the stop line; an incoming lane ends at 0."""

    lane: str
    distance_m: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One green choice. Its lanes are those of its green links for vehicles (G or g), in link order, each once.

    phase_indices: the phases in which it is held, which show the same signals. duration_s: of all of them as planned.
    green_bounds: its own; None if the program gives none.
    approach: the incoming lanes, then the lanes that lead onto the short ones; each lane once.
    """

    phase_indices: tuple[int, ...]
    duration_s: float
    green_bounds: GreenBounds | None = None
    incoming_lanes: tuple[str, ...]
    outgoing_lanes: tuple[str, ...]
    approach: tuple[ApproachLane, ...]

    @property
    def approach_lanes(self) -> tuple[str, ...]:
        return tuple(part.lane for part in self.approach)


@dataclass(frozen=True, kw_only=True)
class LaneGroup:
    """The lanes of an approach that lead to the same stages.

    stages: their numbers, ascending. outgoing_lanes: where their green links lead.
    """

    stages: tuple[int, ...]
    approach: tuple[ApproachLane, ...]
    outgoing_lanes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SignalProgram:
    """The stages of one junction in the order of its program.

    type: SUMO's name of the program's type (static, actuated, …).
    incoming_lanes: all on which vehicles come, in link order. lanes_downstream: the outgoing lanes of each of them.

    Real nets cut their roads into pieces, so the incoming lanes of a signal are often only a few metres long. An
    approach is what a detector there would see: an incoming lane shorter than APPROACH_M (100 m) is continued upstream
    through all lanes that lead onto it, whole lanes and those inside nodes. It ends at APPROACH_M, at another signal,
    or where the road begins. A lane that leads to several stages counts for each of them, and once in approach_lanes.
    If every incoming lane is long enough, the approach is the incoming lanes.
    """

    junction_id: str
    program_id: str
    type: str
    stages: tuple[Stage, ...]
    incoming_lanes: tuple[str, ...]
    lanes_downstream: Mapping[str, tuple[str, ...]] = field(hash=False)
    approach_lanes: tuple[str, ...]

    @property
    def outgoing_lanes(self) -> tuple[str, ...]:
        """All outgoing lanes, in the order of the lanes that lead to them, each once."""
        return tuple(dict.fromkeys(lane for lanes in self.lanes_downstream.values() for lane in lanes))

    def stage_of_phase(self, phase_index: int) -> int | None:
        """The number of the stage that is held in this phase, or None for a phase between two stages."""
        return self._stage_of_phase.get(phase_index)

    @cached_property
    def _stage_of_phase(self) -> Mapping[int, int]:
        return {index: number for number, stage in enumerate(self.stages) for index in stage.phase_indices}

    @cached_property
    def lane_groups(self) -> tuple[LaneGroup, ...]:
        """Each lane of the approaches is in one. Where no lane leads to several stages, each stage has one."""
        stages_of: dict[str, list[int]] = {}
        nearest: dict[str, float] = {}
        for number, stage in enumerate(self.stages):
            for part in stage.approach:
                stages_of.setdefault(part.lane, []).append(number)
                nearest[part.lane] = min(part.distance_m, nearest.get(part.lane, part.distance_m))
        lanes_of: dict[tuple[int, ...], list[str]] = {}
        for lane, numbers in stages_of.items():
            lanes_of.setdefault(tuple(numbers), []).append(lane)
        groups = []
        for stages, lanes in sorted(lanes_of.items()):
            beyond = [outgoing for lane in lanes for outgoing in self.lanes_downstream.get(lane, ())]
            if not beyond:  # all of them lead onto incoming lanes of several stages
                beyond = [outgoing for number in stages for outgoing in self.stages[number].outgoing_lanes]
            approach = tuple(ApproachLane(lane=lane, distance_m=nearest[lane]) for lane in lanes)
            outgoing_lanes = tuple(dict.fromkeys(beyond))
            groups.append(LaneGroup(stages=stages, approach=approach, outgoing_lanes=outgoing_lanes))
        return tuple(groups)

    def bounded(self, green_bounds: Sequence[GreenBounds]) -> SignalProgram:
        """The same program with bounds of its own for each stage."""
        pairs = zip(self.stages, green_bounds, strict=True)
        return replace(self, stages=tuple(replace(stage, green_bounds=bounds) for stage, bounds in pairs))

    def next_stage(self, stage: int) -> int:
        return (stage + 1) % len(self.stages)


def build_program(
    plan: SignalPlan,
    links: Sequence[Sequence[tuple[str, str]]],
    upstream: Mapping[str, Sequence[ApproachLane]],
) -> SignalProgram:
    """Build the program from SUMO's phases and links.

    links: for each signal index, its (incoming lane, outgoing lane) pairs, without those of pedestrian crossings. One
    index may control several links.
    upstream: the lanes that continue a short incoming lane, nearest first; a long lane has none.
    Raises ScenarioError if the program has bounds of greens for another number of stages.
    """

    def lanes_of(indices: Sequence[int], side: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(link[side] for index in indices for link in links[index]))

    def approach_of(lanes: Sequence[str]) -> tuple[ApproachLane, ...]:
        nearest = dict.fromkeys(lanes, 0.0)
        for lane in lanes:
            for part in upstream.get(lane, ()):
                nearest[part.lane] = min(part.distance_m, nearest.get(part.lane, part.distance_m))
        return tuple(ApproachLane(lane=lane, distance_m=distance_m) for lane, distance_m in nearest.items())

    all_held = plan.held_phases
    if plan.green_bounds and len(plan.green_bounds) != len(all_held):
        raise ScenarioError(
            f"the program {plan.program_id!r} of junction {plan.junction_id!r} has {len(all_held)} stages, but its "
            f"parameter {GREEN_BOUNDS_PARAMETER} has bounds for {len(plan.green_bounds)}: give each stage its own"
        )
    stages = []
    for number, held in enumerate(all_held):
        state = plan.phases[held[0]].state
        green = [index for index, letter in enumerate(state[: len(links)]) if letter in "Gg"]
        green_lanes = lanes_of(green, 0)
        stages.append(
            Stage(
                phase_indices=held,
                duration_s=sum(plan.phases[index].duration_s for index in held),
                green_bounds=plan.green_bounds[number] if plan.green_bounds else None,
                incoming_lanes=green_lanes,
                outgoing_lanes=lanes_of(green, 1),
                approach=approach_of(green_lanes),
            )
        )
    incoming_lanes = lanes_of(range(len(links)), 0)
    pairs = list(dict.fromkeys(link for group in links for link in group))
    return SignalProgram(
        junction_id=plan.junction_id,
        program_id=plan.program_id,
        type=plan.type,
        stages=tuple(stages),
        incoming_lanes=incoming_lanes,
        lanes_downstream={
            lane: tuple(outgoing for incoming, outgoing in pairs if incoming == lane) for lane in incoming_lanes
        },
        approach_lanes=tuple(part.lane for part in approach_of(incoming_lanes)),
    )
