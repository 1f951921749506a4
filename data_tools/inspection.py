"""What inspect_scenario finds out about a scenario: stages, transitions, demand, and what is likely to go wrong."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from sumolib.miscutils import openz
from tqdm import tqdm

from tsc.controllers.signal_plans import PlannedSignals
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.episodes.trace import Trace, load_trace
from tsc.junction.signal_control import skipped_lines
from tsc.junction.signal_settings import MAX_PLANNED_GREEN_S
from tsc.scenarios.family import (
    EQUIVALENTS,
    PARTLY_YIELDING_EQUIVALENT,
    SATURATION_FLOW_VEH_PER_H,
    YIELDING_EQUIVALENT,
    heaviest_chain,
)
from tsc.scenarios.junction_net import Turn
from tsc.scenarios.sumocfg import sumo_time_s
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.signal_links import Link, signal_links
from tsc.sumo.signal_program import MIN_STAGE_DURATION_S, SignalPlan

# the controllers of the quick runs, and how to call them
RUNS = {"static": "the net's own program", "max_pressure": "max_pressure"}
STANDING_S = 300
SHORT_APPROACH_M = 30.0
# shorter than about a cycle, a quarter of a run does not show whether the queue grows
_SHORTEST_QUARTER_S = 90

_TURNS: Mapping[str, Turn] = {"r": "right", "R": "right", "l": "left", "L": "left", "t": "left", "T": "left"}
_COMPASS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")

Facts = dict[str, Any]
"""JSON values."""


# Stages and the phases between them


def stage_facts(planned: PlannedSignals, name: str, links: Sequence[Link]) -> list[Facts]:
    plan = planned.plans[name]
    held = plan.held_phases
    facts = []
    for number, phases in enumerate(held):
        state = plan.phases[phases[0]].state
        vehicles = [link for link in links if not link.crossing and state[link.index] in "Gg"]
        transition = _phases_between(plan, phases[-1], held[(number + 1) % len(held)][0])
        facts.append(
            {
                "stage": number,
                "phases": list(phases),
                "state": state,
                "min_green_s": plan.green_bounds[number][0],
                "max_green_s": plan.green_bounds[number][1],
                "bounds_from": planned.bounds_from[name][number],
                "planned_s": sum(plan.phases[index].duration_s for index in phases),
                "movements": [
                    {
                        "link": link.index,
                        "from_lane": link.from_lane.getID(),
                        "to_lane": link.to_lane.getID(),
                        "direction": link.direction,
                        "yields": state[link.index] == "g",
                    }
                    for link in vehicles
                ],
                "crossings": sorted({link.crossing for link in links if link.crossing and state[link.index] in "Gg"}),
                "transition": _transition_words(plan, state, transition, held[(number + 1) % len(held)][0]),
                "transition_s": sum(plan.phases[index].duration_s for index in transition),
                "without_yellow": _without_yellow(plan, [phases[-1], *transition, held[(number + 1) % len(held)][0]]),
            }
        )
    return facts


def _phases_between(plan: SignalPlan, last: int, following: int) -> list[int]:
    """The phases after `last` and before `following`."""
    count = len(plan.phases)
    return [(last + step) % count for step in range(1, (following - last - 1) % count + 1)]


def _transition_words(plan: SignalPlan, state: str, transition: Sequence[int], following: int) -> str:
    """What happens between two stages, such as `pedestrians clear 5 s, yellow 3 s, all red 2 s`."""
    following_state = plan.phases[following].state
    words = [(phase_words(plan, index, state, following_state), plan.phases[index].duration_s) for index in transition]
    return ", ".join(
        f"{word} {sum(duration_s for _, duration_s in run):g} s"
        for word, run in ((word, list(run)) for word, run in groupby(words, lambda each: each[0]))
    )


def phase_words(plan: SignalPlan, index: int, before: str, after: str) -> str:
    """What a phase between two stages does. before, after: the states of these stages."""

    def letters(state: str, *, vehicles: bool) -> list[str]:
        return [letter for letter, each in zip(state, plan.is_for_vehicles, strict=False) if each == vehicles]

    def green(state: str, *, vehicles: bool) -> set[int]:
        return {n for n, letter in enumerate(letters(state, vehicles=vehicles)) if letter in "Gg"}

    state = plan.phases[index].state
    shown = set(letters(state, vehicles=True))
    if shown & set("yY"):
        return "yellow"
    if "u" in shown:
        return "red and yellow"
    if now := green(state, vehicles=True):
        walking = green(state, vehicles=False)
        if now == green(before, vehicles=True):
            return "pedestrians clear" if green(before, vehicles=False) - walking else "the same green"
        if now == green(after, vehicles=True):
            return "next green, pedestrians wait" if green(after, vehicles=False) - walking else "next green"
        return "part of the green" if now < green(before, vehicles=True) else "short green"
    if shown & set("oO"):
        return "signals off"
    return "only pedestrians" if green(state, vehicles=False) else "all red"


def _without_yellow(plan: SignalPlan, phases: Sequence[int]) -> list[int]:
    """The links for vehicles that turn from green to red at once."""
    states = [plan.phases[index].state for index in phases]
    return sorted(
        {
            link
            for one, other in pairwise(states)
            for link, vehicles in enumerate(plan.is_for_vehicles)
            if vehicles and one[link] in "Gg" and other[link] in "rs"
        }
    )


def never_served(plan: SignalPlan) -> list[int]:
    """The links for vehicles that are red in every stage."""
    states = [plan.phases[held[0]].state for held in plan.held_phases]
    return [
        link
        for link, vehicles in enumerate(plan.is_for_vehicles)
        if vehicles and all(state[link] in "ryYu" for state in states)
    ]


# The quick runs


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one run, counted by SUMO: vehicles that came onto each edge, vehicles that ended their trip there, vehicles on
    each lane inside a junction, and the lanes that nobody left in the last STANDING_S seconds."""

    onto_edge: Mapping[str, int]
    arrived: Mapping[str, int]
    inner_lane: Mapping[str, int]
    not_left: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The episode under one controller. record: its metrics (docs/evaluation.md)."""

    record: Facts
    trace: Trace
    counts: Counts

    @property
    def entered_veh(self) -> int:
        return int(self.record["finished_veh"] + self.record["unfinished_veh"])


def quick_runs(scenario: TrafficScenario, seconds: int, folder: Path) -> dict[str, Run]:
    """The first seconds of one episode under each controller of RUNS, in processes of their own."""
    end_s = min(scenario.end_s, scenario.begin_s + seconds)
    seed = scenario.episode_seed("evaluation", 0)
    files = scenario.files(seed)
    jobs = []
    for kind in RUNS:
        outputs = folder / kind
        outputs.mkdir(parents=True, exist_ok=True)
        jobs.append(
            EpisodeJob(
                scenario=scenario.name,
                controller=kind,
                kind=kind,
                seed=seed,
                fingerprint="",
                files=replace(
                    files, additional_files=(*files.additional_files, _counting(outputs, scenario.begin_s, end_s))
                ),
                end_s=end_s,
                warm_up_s=0,
                signals=scenario.signals,
                lookahead=OutcomeSettings(),
                trace_file=outputs / "trace.npz",
            )
        )
    done = run_jobs(jobs, min(len(jobs), os.cpu_count() or 1))
    bar = tqdm(done, f"{scenario.name}: runs", len(jobs), unit=" runs", leave=False, disable=None)
    records = {record["controller"]: record for record in bar}
    return {
        kind: Run(
            record={key: value for key, value in records[kind].items() if key not in ("fingerprint", "wall_s")},
            trace=load_trace(folder / kind / "trace.npz"),
            counts=_counts(folder / kind),
        )
        for kind in RUNS
    }


def _counting(folder: Path, begin_s: int, end_s: int) -> Path:
    """An additional file with which SUMO counts vehicles on every lane."""
    outputs = {"whole": begin_s, "last": max(begin_s, end_s - STANDING_S)}
    lines = [
        f'<laneData id="inspect-{name}" file={quoteattr(str(folder / f"{name}.xml"))} begin="{first_s}" '
        'withInternal="true" excludeEmpty="true" writeAttributes="entered departed arrived left"/>'
        for name, first_s in outputs.items()
    ]
    path = folder / "counts.add.xml"
    path.write_text(f"<additional>{''.join(lines)}</additional>\n")
    return path


def _counts(folder: Path) -> Counts:
    def lanes(name: str) -> Iterator[tuple[str, str, Mapping[str, int]]]:
        for edge in ElementTree.parse(folder / f"{name}.xml").getroot().iter("edge"):
            for lane in edge:
                keys = ("entered", "departed", "arrived", "left")
                yield edge.attrib["id"], lane.attrib["id"], {key: int(lane.get(key, 0)) for key in keys}

    onto_edge: dict[str, int] = {}
    arrived: dict[str, int] = {}
    inner_lane: dict[str, int] = {}
    for edge, lane, count in lanes("whole"):
        onto_edge[edge] = onto_edge.get(edge, 0) + count["entered"] + count["departed"]
        arrived[edge] = arrived.get(edge, 0) + count["arrived"]
        if edge.startswith(":"):
            inner_lane[lane] = count["entered"]
    not_left = frozenset(lane for _, lane, count in lanes("last") if not count["left"])
    return Counts(onto_edge=onto_edge, arrived=arrived, inner_lane=inner_lane, not_left=not_left)


# Demand and saturation


def flows_veh_per_h(links: Sequence[Link], runs: Mapping[str, Run], seconds: int) -> dict[tuple[str, str], float]:
    """The flow of each movement (incoming edge, outgoing edge).

    The vehicles that came onto the incoming edge are shared out as they were counted inside the junction, so that those
    that still wait at the end count, too. Of the runs, the one with more vehicles on the edge counts.
    """
    flows: dict[tuple[str, str], float] = {}
    vehicles = [link for link in links if not link.crossing]
    for edge in dict.fromkeys(link.from_edge for link in vehicles):
        counts = max(
            (run.counts for run in runs.values()),
            key=lambda each: each.onto_edge.get(edge, 0) - each.arrived.get(edge, 0),
        )
        total = counts.onto_edge.get(edge, 0) - counts.arrived.get(edge, 0)
        crossed = {link.movement: 0 for link in vehicles if link.from_edge == edge}
        for link in vehicles:
            if link.from_edge == edge:
                crossed[link.movement] += counts.inner_lane.get(link.via_lane, 0)
        for movement, count in crossed.items():
            share = count / sum(crossed.values()) if sum(crossed.values()) else 1 / len(crossed)
            flows[movement] = max(total, sum(crossed.values())) * share * 3600 / seconds
    return flows


def saturation_facts(
    plan: SignalPlan, links: Sequence[Link], flows: Mapping[tuple[str, str], float]
) -> tuple[Facts, list[Facts]]:
    """An estimate of how well the planned cycle serves the flows: of the junction, and of each stage.

    After Webster (Traffic Signal Settings, 1958), with the definitions of tsc.scenarios.family. A lane group's flow
    ratio is its flow per lane over the saturation flow of 1800 veh/h; its degree of saturation is the ratio over its
    share of green in the cycle. A stage has the values of its busiest lane group. Y is the heaviest chain of lane
    groups of which no two share a stage; the junction's degree of saturation is Y C / (C - L), with the cycle C and the
    time L in which no vehicle has green. A lane group with green in several separate stages spreads over them evenly.
    Cycles with a green that is not planned have no degree of saturation.
    """
    cycle_s = sum(phase.duration_s for phase in plan.phases)
    held = plan.held_phases
    states = [plan.phases[phases[0]].state for phases in held]
    planned = all(sum(plan.phases[index].duration_s for index in phases) <= MAX_PLANNED_GREEN_S for phases in held)
    vehicles = [link for link in links if not link.crossing]
    groups: list[tuple[list[bool], float, float]] = []
    for movement in flows:
        own = [link for link in vehicles if link.movement == movement]
        lanes = {link.from_lane.getID() for link in own}
        together = {link.movement for link in vehicles if link.from_lane.getID() in lanes}
        lanes_together = {link.from_lane.getID() for link in vehicles if link.movement in together}
        weighted = {each: flows[each] * _equivalent(each, vehicles, states) for each in together}
        per_lane = max(weighted[movement] / len(lanes), sum(weighted.values()) / len(lanes_together))
        green_s = sum(phase.duration_s for phase in plan.phases if any(phase.state[link.index] in "Gg" for link in own))
        in_stage = [any(state[link.index] in "Gg" for link in own) for state in states]
        groups.append((in_stage, per_lane / SATURATION_FLOW_VEH_PER_H, green_s / cycle_s))
    stages = []
    for number in range(len(held)):
        of_stage = [(ratio, share) for in_stage, ratio, share in groups if in_stage[number]]
        stages.append(
            {
                "flow_ratio": round(max((ratio for ratio, _ in of_stage), default=0.0), 3),
                "saturation": round(max((ratio / share for ratio, share in of_stage), default=0.0), 3)
                if planned
                else None,
            }
        )
    spread = []
    for in_stage, ratio, _ in groups:
        parts = sum(green and not before for green, before in zip(in_stage, [False, *in_stage], strict=False))
        spread.append((in_stage, ratio / max(1, parts)))
    total = heaviest_chain(spread, len(held))
    lost_s = sum(
        phase.duration_s
        for phase in plan.phases
        if not any(letter in "Gg" for letter, each in zip(phase.state, plan.is_for_vehicles, strict=False) if each)
    )
    of_junction = {
        "flow_ratio": round(total, 3),
        "saturation": round(total * cycle_s / (cycle_s - lost_s), 3) if planned else None,
        "lost_s": lost_s,
    }
    return of_junction, stages


def _equivalent(movement: tuple[str, str], links: Sequence[Link], states: Sequence[str]) -> float:
    """How many vehicles that drive straight on a vehicle of this movement counts as."""
    own = [link for link in links if link.movement == movement]
    turn = _TURNS.get(own[0].direction, "straight")
    letters = {state[link.index] for state in states for link in own} & set("Gg")
    if turn == "left" and "g" in letters:
        return PARTLY_YIELDING_EQUIVALENT if "G" in letters else YIELDING_EQUIVALENT
    return EQUIVALENTS[turn]


def approach_facts(links: Sequence[Link], net: Any, runs: Mapping[str, Run], seconds: int) -> list[Facts]:
    """The incoming edges, clockwise from north. Those from outside the junction have a letter. runs: what counts the
    demand; may be empty."""
    vehicles = [link for link in links if not link.crossing]
    inside = {link.from_lane.getEdge().getToNode().getID() for link in vehicles}
    facts = []
    for edge_id in dict.fromkeys(link.from_edge for link in vehicles):
        edge = net.getEdge(edge_id)
        veh = max((run.counts.onto_edge.get(edge_id, 0) for run in runs.values()), default=0)
        # where the approach comes from, looked at from the stop line
        (x, y), (end_x, end_y) = _point_before_end(edge.getShape(), 50.0), edge.getShape()[-1][:2]
        bearing_deg = math.degrees(math.atan2(x - end_x, y - end_y)) % 360
        facts.append(
            {
                "edge": edge_id,
                "from": _COMPASS[round(bearing_deg / 45) % 8],
                "bearing_deg": round(bearing_deg),
                "lanes": len({link.from_lane.getID() for link in vehicles if link.from_edge == edge_id}),
                "length_m": round(edge.getLength(), 1),
                "reach_m": round(_reach_m(edge), 1),
                "inside": edge.getFromNode().getID() in inside,
                "demand_veh_per_h": round(veh * 3600 / seconds),
            }
        )
    facts.sort(key=lambda each: (each["inside"], each["bearing_deg"]))
    for number, each in enumerate(facts):
        each["letter"] = "" if each["inside"] else _letter(number)
    return facts


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{number - 25}"


def _point_before_end(shape: Sequence[Sequence[float]], distance_m: float) -> tuple[float, float]:
    """The point of a line that is distance_m before its end, or its begin."""
    for (x, y, *_), (end_x, end_y, *_) in zip(reversed(shape[:-1]), reversed(shape), strict=False):
        length_m = math.hypot(end_x - x, end_y - y)
        if length_m >= distance_m > 0:
            share = distance_m / length_m
            return end_x + (x - end_x) * share, end_y + (y - end_y) * share
        distance_m -= length_m
    return shape[0][0], shape[0][1]


def _reach_m(edge: Any, seen: frozenset[str] = frozenset()) -> float:
    """How far vehicles are seen: the edge and those that lead onto it, up to another signal. It stops counting at
    SHORT_APPROACH_M."""
    length_m = float(edge.getLength())
    if length_m >= SHORT_APPROACH_M:
        return length_m
    before = [
        source
        for source, connections in edge.getIncoming().items()
        if source.getFunction() == ""
        and source.getID() not in seen
        and not any(connection.getTLSID() or connection.getDirection() == "t" for connection in connections)
    ]
    further_m = (_reach_m(source, seen | {edge.getID()}) for source in before)
    return length_m + max(further_m, default=0.0)


# All of it


def inspect(
    scenario: TrafficScenario, planned: PlannedSignals, net: Any, runs: Mapping[str, Run], seconds: int
) -> Facts:
    """Everything that is shown of a scenario, as JSON values. seconds: how long the runs were."""
    links = signal_links(net)
    junctions = []
    for name, plan in planned.plans.items():
        flows = flows_veh_per_h(links[name], runs, seconds)
        of_junction, of_stages = saturation_facts(plan, links[name], flows)
        approaches = approach_facts(links[name], net, runs, seconds)
        stages = stage_facts(planned, name, links[name])
        for stage, saturation in zip(stages, of_stages, strict=True):
            stage.update(saturation)
        junctions.append(
            {
                "id": name,
                "type": planned.types[name],
                "cycle_s": sum(phase.duration_s for phase in plan.phases),
                "demand_veh_per_h": sum(each["demand_veh_per_h"] for each in approaches if not each["inside"]),
                **of_junction,
                "stages": stages,
                "approaches": approaches,
                "never_served": never_served(plan),
            }
        )
    step_length_s = planned.files.step_length_s
    facts: Facts = {
        "name": scenario.name,
        "net_file": str(scenario.net_file),
        "begin_s": scenario.begin_s,
        "end_s": scenario.end_s,
        "step_length_s": step_length_s,
        "time_to_teleport_s": scenario.time_to_teleport_s,
        "note": scenario.note,
        "simulated_s": seconds,
        "skipped": dict(planned.skipped),
        "skipped_lines": skipped_lines(planned.skipped),
        "runs": {kind: run.record for kind, run in runs.items()},
        "junctions": junctions,
    }
    departures = _departures_s(scenario) if not any(run.entered_veh for run in runs.values()) else None
    facts["trouble"] = [*_trouble_of_runs(facts, runs, departures), *_trouble_of_signals(facts)]
    return facts


# Trouble


def _departures_s(scenario: TrafficScenario) -> list[float]:
    """The departures in the demand of the episode, as far as they are times; of flows, their begins and ends."""
    found = []
    for path in scenario.files(scenario.episode_seed("evaluation", 0)).route_files:
        with openz(str(path), "rb") as stream:
            for _, element in ElementTree.iterparse(stream):
                keys = {"vehicle": ("depart",), "trip": ("depart",), "flow": ("begin", "end")}.get(element.tag, ())
                for key in keys:
                    try:
                        found.append(sumo_time_s(element.get(key, "")))
                    except ValueError:  # a word such as `triggered`
                        continue
    return found


def _trouble_of_runs(facts: Facts, runs: Mapping[str, Run], departures_s: Sequence[float] | None) -> Iterator[str]:
    end_s = facts["begin_s"] + facts["simulated_s"]
    if departures_s is not None:
        period = f"no vehicle entered at all between {facts['begin_s']} and {end_s} s"
        if departures_s:
            yield (
                f"{period}: the departures of the route files are from {min(departures_s):g} to {max(departures_s):g} "
                "s: check --begin and --end against them"
            )
        else:
            yield f"{period}: the route files have no departures: give the scenario a demand"
    for kind, run in runs.items():
        not_inserted = run.record["not_inserted_veh"]
        due_veh = run.entered_veh + not_inserted
        if not_inserted >= max(3, 0.01 * due_veh):
            yield (
                f"under {RUNS[kind]}, {not_inserted} of {due_veh} vehicles could not enter by {end_s} s: their first "
                "edges are full or too short: look at the approaches, or lower the demand (demand: scale)"
            )
        standing = standing_veh(run)
        if standing:
            yield (
                f"under {RUNS[kind]}, {sum(standing.values())} vehicles stand on {_few(list(standing))}, which nobody "
                f"left in the last {STANDING_S} s: grid-lock, or a movement without green: look at these lanes, lower "
                "the demand, or set --teleport"
            )
        if growth := growing_queue_veh(run):
            yield (
                f"under {RUNS[kind]}, the queue still grows at the end (from {growth[0]:.0f} to {growth[1]:.0f} veh "
                "in the last quarter): the demand rises, or exceeds what the signals can serve: look at the "
                "saturation, simulate longer (--simulate), or lower the demand (demand: scale)"
            )
        if run.record["teleports"]:
            yield (
                f"under {RUNS[kind]}, {run.record['teleports']} vehicles were teleported past a jam: queues look "
                "shorter than they are: use --teleport -1, and mend the jam"
            )
    if departures_s is None:
        empty = [
            f"{each['edge']} ({junction['id']})"
            for junction in facts["junctions"]
            for each in junction["approaches"]
            if not each["demand_veh_per_h"]
        ]
        if empty:
            yield (
                f"{_number(empty, 'approach', 'approaches')} without any vehicle: {_few(empty)}: nothing to learn "
                "there: check the routes, or simulate longer"
            )


def _trouble_of_signals(facts: Facts) -> Iterator[str]:
    junctions = facts["junctions"]
    short = [
        f"{each['edge']} ({junction['id']}, {each['reach_m']:g} m)"
        for junction in junctions
        for each in junction["approaches"]
        if each["reach_m"] < SHORT_APPROACH_M and not each["inside"]
    ]
    if short:
        yield (
            f"{_number(short, 'approach', 'approaches')} shorter than {SHORT_APPROACH_M:g} m: {_few(short)}: a queue "
            "there is seen too late: join the neighbouring signals, or cut the net further out"
        )
    abrupt = [
        f"{junction['id']} after stage {stage['stage']} (links {', '.join(map(str, stage['without_yellow']))})"
        for junction in junctions
        for stage in junction["stages"]
        if stage["without_yellow"]
    ]
    if abrupt:
        yield (
            f"{_number(abrupt, 'transition', 'transitions')} in which a green ends without yellow: {_few(abrupt)}: "
            "vehicles brake hard or run the red: add a yellow phase to the program"
        )
    unserved = [
        f"{junction['id']} (links {', '.join(map(str, junction['never_served']))})"
        for junction in junctions
        if junction["never_served"]
    ]
    if unserved:
        yield (
            f"{_number(unserved, 'junction', 'junctions')} with movements that are red in every stage: "
            f"{_few(unserved)}: they get green only in phases under {MIN_STAGE_DURATION_S:g} s, or never: check the "
            "program"
        )
    fixed = [
        junction["id"]
        for junction in junctions
        if all(stage["min_green_s"] == stage["max_green_s"] for stage in junction["stages"])
    ]
    if fixed:
        yield (
            f"{_number(fixed, 'junction', 'junctions')} with fixed greens only: {_few(fixed)}: there is nothing to "
            "decide: give them greens in a network file"
        )


def standing_veh(run: Run) -> dict[str, int]:
    """Vehicles at the end on lanes where somebody stood, and that nobody left, in the last STANDING_S seconds."""
    if len(run.trace.halting_veh) < 2 * STANDING_S:
        return {}
    last = run.trace.halting_veh[-STANDING_S:]
    return {
        lane: int(last[-1, place])
        for place, lane in enumerate(run.trace.lanes)
        if lane in run.counts.not_left and last[:, place].min() > 0
    }


def growing_queue_veh(run: Run) -> tuple[float, float] | None:
    """The mean queues of the third and of the last quarter, if the queue grows by more than noise."""
    quarter = len(run.trace.queue_veh) // 4
    if quarter < _SHORTEST_QUARTER_S:
        return None
    third, last = run.trace.queue_veh[2 * quarter : 3 * quarter].mean(), run.trace.queue_veh[3 * quarter :].mean()
    return (float(third), float(last)) if last > 1.25 * third + 5 else None


def _number(things: Sequence[str], one: str, several: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else several}"


def _few(things: Sequence[str]) -> str:
    more = f" and {len(things) - 4} more" if len(things) > 4 else ""
    return f"{', '.join(things[:4])}{more}"
