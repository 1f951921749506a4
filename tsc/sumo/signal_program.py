"""Stages of a junction's signal program.

A stage is a phase with green, without yellow, and with a duration of at least MIN_STAGE_DURATION_S: shorter greens are
turn-clearance slivers, which belong to the change from one stage to the next. The phases between two stages (yellow,
all-red, slivers) run as the program says.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MIN_STAGE_DURATION_S = 5.0

# A junction sees at least this far, if the road is long enough: up to where the observation's `far` begins.
APPROACH_M = 100.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase as in SUMO: one letter for each link (G, g, y, r, …), and its duration in the program.

    min_duration_s, max_duration_s: bounds of a phase whose end SUMO chooses.
    next_phases: the phases that may follow; empty if the next phase of the program follows.
    """

    state: str
    duration_s: float
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    next_phases: tuple[int, ...] = ()

    @property
    def is_stage(self) -> bool:
        letters = set(self.state)
        return bool(letters & set("Gg")) and not letters & set("yY") and self.duration_s >= MIN_STAGE_DURATION_S


@dataclass(frozen=True, kw_only=True)
class SignalPlan:
    """A junction's program as SUMO reads it from a file: type (static, actuated, …), offset and phases."""

    junction_id: str
    program_id: str
    type: str
    offset_s: float
    phases: tuple[Phase, ...]

    def element(self) -> ElementTree.Element:
        """SUMO's tlLogic element. Its phases follow one another in the given order; next_phases is left out."""
        logic = ElementTree.Element("tlLogic", id=self.junction_id, type=self.type, programID=self.program_id)
        logic.set("offset", f"{self.offset_s:.10g}")
        for phase in self.phases:
            element = ElementTree.SubElement(logic, "phase", duration=f"{phase.duration_s:.10g}", state=phase.state)
            if phase.min_duration_s is not None:
                element.set("minDur", f"{phase.min_duration_s:.10g}")
            if phase.max_duration_s is not None:
                element.set("maxDur", f"{phase.max_duration_s:.10g}")
        return logic


@dataclass(frozen=True, kw_only=True)
class ApproachLane:
    """A lane on the way to a signal. It ends distance_m (m) before the stop line; an incoming lane ends at 0."""

    lane: str
    distance_m: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One green choice. Its lanes are those of the links that are green (G or g), in link order, each once.

    approach: the incoming lanes, then the lanes that lead onto the short ones; each lane once.
    """

    phase_index: int
    duration_s: float
    incoming_lanes: tuple[str, ...]
    outgoing_lanes: tuple[str, ...]
    approach: tuple[ApproachLane, ...]

    @property
    def approach_lanes(self) -> tuple[str, ...]:
        return tuple(part.lane for part in self.approach)


@dataclass(frozen=True, kw_only=True)
class SignalProgram:
    """The stages of one junction in the order of its program.

    incoming_lanes: all of them, in link order. lanes_downstream: the outgoing lanes of each incoming lane.

    Real nets cut their roads into pieces, so the incoming lanes of a signal are often only a few metres long. An
    approach is what a detector there would see: an incoming lane shorter than APPROACH_M (100 m) is continued upstream
    through all lanes that lead onto it, whole lanes and those inside nodes. It ends at APPROACH_M, at another signal,
    or where the road begins. A lane that leads to several stages counts for each of them, and once in approach_lanes.
    If every incoming lane is long enough, the approach is the incoming lanes.
    """

    junction_id: str
    program_id: str
    stages: tuple[Stage, ...]
    incoming_lanes: tuple[str, ...]
    lanes_downstream: Mapping[str, tuple[str, ...]] = field(hash=False)
    approach_lanes: tuple[str, ...]

    @property
    def outgoing_lanes(self) -> tuple[str, ...]:
        """All outgoing lanes, in the order of the lanes that lead to them, each once."""
        return tuple(dict.fromkeys(lane for lanes in self.lanes_downstream.values() for lane in lanes))

    def stage_of_phase(self, phase_index: int) -> int | None:
        """The number of the stage that this phase is, or None for a phase between two stages."""
        for number, stage in enumerate(self.stages):
            if stage.phase_index == phase_index:
                return number
        return None

    def next_stage(self, stage: int) -> int:
        return (stage + 1) % len(self.stages)

    @property
    def is_controllable(self) -> bool:
        """Whether there are two stages or more: with fewer there is nothing to decide."""
        return len(self.stages) >= 2


def build_program(
    junction_id: str,
    program_id: str,
    phases: Sequence[Phase],
    links: Sequence[Sequence[tuple[str, str]]],
    upstream: Mapping[str, Sequence[ApproachLane]],
) -> SignalProgram:
    """Build the program from SUMO's phases and links.

    links: for each signal index, its (incoming lane, outgoing lane) pairs. One index may control several links.
    upstream: the lanes that continue a short incoming lane, nearest first; a long lane has none.
    """

    def lanes_of(indices: Sequence[int], side: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(link[side] for index in indices for link in links[index]))

    def approach_of(lanes: Sequence[str]) -> tuple[ApproachLane, ...]:
        nearest = dict.fromkeys(lanes, 0.0)
        for lane in lanes:
            for part in upstream.get(lane, ()):
                nearest[part.lane] = min(part.distance_m, nearest.get(part.lane, part.distance_m))
        return tuple(ApproachLane(lane=lane, distance_m=distance_m) for lane, distance_m in nearest.items())

    stages = []
    for number, phase in enumerate(phases):
        if phase.is_stage:
            green = [index for index in range(min(len(links), len(phase.state))) if phase.state[index] in "Gg"]
            green_lanes = lanes_of(green, 0)
            stages.append(
                Stage(
                    phase_index=number,
                    duration_s=phase.duration_s,
                    incoming_lanes=green_lanes,
                    outgoing_lanes=lanes_of(green, 1),
                    approach=approach_of(green_lanes),
                )
            )
    incoming_lanes = lanes_of(range(len(links)), 0)
    pairs = list(dict.fromkeys(link for group in links for link in group))
    return SignalProgram(
        junction_id=junction_id,
        program_id=program_id,
        stages=tuple(stages),
        incoming_lanes=incoming_lanes,
        lanes_downstream={
            lane: tuple(outgoing for incoming, outgoing in pairs if incoming == lane) for lane in incoming_lanes
        },
        approach_lanes=tuple(part.lane for part in approach_of(incoming_lanes)),
    )
