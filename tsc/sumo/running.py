"""Read a running SUMO and switch its signals: the same code for a simulation of this process and for one that someone
else started."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tsc.sumo.signal_program import (
    APPROACH_M,
    GREEN_BOUNDS_PARAMETER,
    ApproachLane,
    Phase,
    SignalPlan,
    SignalProgram,
    build_program,
    green_bounds_of,
)

# a remaining time (setPhaseDuration) so long that a held green only ends when we end it
HOLD_S = 1e6

# SUMO's type numbers for the programs of rail signals, of rail crossings, and of signals that are off
_TYPES_WITHOUT_STAGES = (1, 2, 13)

# SUMO's names of the edges inside a node: `:NODE_3`; a c or w before the number marks a crossing or a walking area
_INNER_EDGE = re.compile(r":(?P<node>.+)_(?P<kind>[cw]?)\d+")


@dataclass(frozen=True, kw_only=True)
class SumoFiles:
    """The files and options that a simulation starts from. Paths are absolute or relative to the working folder.

    more_options: further words of SUMO's command line, for example from a sumocfg.
    """

    net_file: Path
    route_files: tuple[Path, ...]
    additional_files: tuple[Path, ...] = ()
    seed: int = 0
    step_length_s: float = 1.0
    time_to_teleport_s: float = -1.0
    begin_s: float = 0.0
    more_options: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """The words of SUMO's command line."""
        options = ["--net-file", str(self.net_file), "--seed", str(self.seed)]
        if self.route_files:
            options += ["--route-files", ",".join(map(str, self.route_files))]
        if self.additional_files:
            options += ["--additional-files", ",".join(map(str, self.additional_files))]
        options += ["--step-length", f"{self.step_length_s:g}", "--time-to-teleport", f"{self.time_to_teleport_s:g}"]
        if self.begin_s:
            options += ["--begin", f"{self.begin_s:g}"]
        return [*options, *self.more_options]


@dataclass(frozen=True, kw_only=True)
class Approaching:
    """A vehicle on a lane: distance to the lane's end (m), speed (m/s), present wait (s, SUMO's waiting time)."""

    distance_m: float
    speed_m_per_s: float
    waiting_time_s: float


class Delayed(NamedTuple):
    """A vehicle on a lane: distance to the lane's end (m), speed (m/s), how long it stood in the last 100 s (s, SUMO's
    accumulated waiting time), and its time loss since it departed (s)."""

    name: str
    distance_m: float
    speed_m_per_s: float
    stood_s: float
    time_loss_s: float


class Pose(NamedTuple):
    """Where a vehicle is: the middle of its front bumper in m, its angle (degrees, clockwise from north), its speed."""

    name: str
    x_m: float
    y_m: float
    angle_deg: float
    speed_m_per_s: float


Box = tuple[float, float, float, float]
"""The west, south, east and north end of a part of the net, in m."""


class RunningSumo(ABC):
    """A running simulation. `sumo` is the module libsumo or a TraCI connection: both offer the same calls."""

    def __init__(self, sumo: Any, files: SumoFiles) -> None:
        self._sumo = sumo
        self.files = files

    @property
    def time_s(self) -> float:
        return float(self._sumo.simulation.getTime())

    @abstractmethod
    def step(self) -> None:
        """Simulate one second. Raises ScenarioError if SUMO stops with an error."""

    def arrived_veh(self) -> int:
        """Vehicles that reached their destination in the last step."""
        return int(self._sumo.simulation.getArrivedNumber())

    def teleports_veh(self) -> int:
        """Vehicles that SUMO began to teleport in the last step."""
        return int(self._sumo.simulation.getStartingTeleportNumber())

    def traffic_digest(self) -> str:
        """16 hexadecimal digits. They are equal in two simulations only if every vehicle is on the same lane, at the
        same position and speed, to the last bit."""
        vehicle = self._sumo.vehicle
        traffic = sorted(
            (name, vehicle.getLaneID(name), vehicle.getLanePosition(name), vehicle.getSpeed(name))
            for name in vehicle.getIDList()
        )
        return hashlib.sha256(repr(traffic).encode()).hexdigest()[:16]

    def poses(self, box: Box) -> list[Pose]:
        """The vehicles whose front is in a part of the net, in SUMO's order."""
        west, south, east, north = box
        vehicle = self._sumo.vehicle
        found = []
        for name in vehicle.getIDList():
            x_m, y_m = vehicle.getPosition(name)
            if west <= x_m <= east and south <= y_m <= north:
                found.append(Pose(name, x_m, y_m, vehicle.getAngle(name), vehicle.getSpeed(name)))
        return found

    def size_m(self, vehicle: str) -> tuple[float, float]:
        """The length and the width of a vehicle, in m."""
        return float(self._sumo.vehicle.getLength(vehicle)), float(self._sumo.vehicle.getWidth(vehicle))

    # Signals

    def junction_ids(self) -> tuple[str, ...]:
        return tuple(self._sumo.trafficlight.getIDList())

    def program(self, junction_id: str) -> SignalProgram:
        """The running program, of any type. A railway signal, or one that is off, has no stages."""
        links = self._links(junction_id)
        incoming_lanes = dict.fromkeys(incoming for group in links for incoming, _ in group)
        upstream = {lane: self._upstream(lane) for lane in incoming_lanes if not lane.startswith(":")}
        plan = self.signal_plan(junction_id)
        if self._running_logic(junction_id).type in _TYPES_WITHOUT_STAGES:
            plan = replace(plan, phases=())
        return build_program(plan, links, upstream)

    def _links(self, junction_id: str) -> list[list[tuple[str, str]]]:
        """For each signal index, its links for vehicles: (incoming lane, outgoing lane)."""
        return [
            [(incoming, outgoing) for incoming, outgoing, _ in group if not _is_for_pedestrians(incoming)]
            for group in self._sumo.trafficlight.getControlledLinks(junction_id)
        ]

    def _upstream(self, incoming_lane: str) -> list[ApproachLane]:
        """The lanes that continue an incoming lane shorter than APPROACH_M upstream, nearest first."""
        found: list[ApproachLane] = []
        seen = {incoming_lane}
        ahead = deque([ApproachLane(lane=incoming_lane, distance_m=0.0)])
        while ahead:
            part = ahead.popleft()
            begin_m = part.distance_m + self.lane_length_m(part.lane)
            if begin_m < APPROACH_M:
                before = [lane for lane in self._lanes_before.get(part.lane, ()) if lane not in seen]
                seen.update(before)
                parts = [ApproachLane(lane=lane, distance_m=begin_m) for lane in before]
                found += parts
                ahead += parts
        return sorted(found, key=lambda part: part.distance_m)

    @cached_property
    def _lanes_before(self) -> Mapping[str, Sequence[str]]:
        """For each lane, the lanes that lead onto it. Lanes inside nodes count too; ways past a signal and U-turns do
        not."""
        junction_ids = self.junction_ids()
        signal_nodes = self._nodes(junction_ids)
        controlled = {
            (incoming, outgoing)
            for junction_id in junction_ids
            for group in self._sumo.trafficlight.getControlledLinks(junction_id)
            for incoming, outgoing, _ in group
        }
        before: dict[str, list[str]] = {}
        for lane in self._sumo.lane.getIDList():
            inside = _INNER_EDGE.fullmatch(lane.rpartition("_")[0])
            if inside and (inside["node"] in signal_nodes or inside["kind"]):
                continue
            for outgoing, _, _, _, inner, _, direction, _ in self._sumo.lane.getLinks(lane):
                if (lane, outgoing) not in controlled and direction != "t":
                    before.setdefault(inner or outgoing, []).append(lane)
        return before

    def signal_plan(self, junction_id: str) -> SignalPlan:
        """The running program, of any type, as it would stand in a file."""
        light = self._sumo.trafficlight
        logic = self._running_logic(junction_id)
        return SignalPlan(
            junction_id=junction_id,
            program_id=logic.programID,
            type=light.getParameter(junction_id, "typeName"),
            offset_s=float(light.getParameter(junction_id, "offset") or 0),  # none where it is off
            phases=tuple(
                Phase(
                    state=phase.state,
                    duration_s=phase.duration,
                    min_duration_s=phase.minDur,
                    max_duration_s=phase.maxDur,
                    next_phases=tuple(phase.next),
                )
                for phase in logic.phases
            ),
            is_for_vehicles=tuple(map(bool, self._links(junction_id))),
            green_bounds=green_bounds_of(light.getParameter(junction_id, GREEN_BOUNDS_PARAMETER), junction_id),
        )

    def _running_logic(self, junction_id: str) -> Any:
        """SUMO's own object of the program that runs."""
        light = self._sumo.trafficlight
        program_id = light.getProgram(junction_id)
        return next(logic for logic in light.getAllProgramLogics(junction_id) if logic.programID == program_id)

    def phase_index(self, junction_id: str) -> int:
        return int(self._sumo.trafficlight.getPhase(junction_id))

    def phase_indices(self, junction_ids: Sequence[str]) -> list[int]:
        return list(map(self._sumo.trafficlight.getPhase, junction_ids))

    def signal_state(self, junction_id: str) -> str:
        """The letter of each link (G, g, y, r, …) in the last second."""
        return str(self._sumo.trafficlight.getRedYellowGreenState(junction_id))

    def phase_remaining_s(self, junction_id: str) -> float:
        return float(self._sumo.trafficlight.getNextSwitch(junction_id)) - self.time_s

    def set_phase_remaining(self, junction_id: str, remaining_s: float) -> None:
        """Set the remaining time (s). 0 ends the phase with the next step; the program's own next phase follows."""
        self._sumo.trafficlight.setPhaseDuration(junction_id, remaining_s)

    def set_phase_index(self, junction_id: str, phase_index: int) -> None:
        """Go to another phase of the running program."""
        self._sumo.trafficlight.setPhase(junction_id, phase_index)

    # Lanes

    def queue_veh(self, lanes: Sequence[str]) -> int:
        """Halting vehicles (speed < 0.1 m/s) on the lanes."""
        halting = self._sumo.lane.getLastStepHaltingNumber
        return sum(halting(lane) for lane in lanes)

    def halting_veh(self, lanes: Sequence[str]) -> list[int]:
        """Halting vehicles (speed < 0.1 m/s) of each lane, in their order."""
        return list(map(self._sumo.lane.getLastStepHaltingNumber, lanes))

    def vehicles_veh(self, lanes: Sequence[str]) -> int:
        count = self._sumo.lane.getLastStepVehicleNumber
        return sum(count(lane) for lane in lanes)

    def free_space_veh(self, lanes: Sequence[str]) -> int:
        """How many more vehicles of 7.5 m (5 m and SUMO's default gap of 2.5 m) fit on the lanes."""
        free = 0
        for lane in lanes:
            room = int(self._sumo.lane.getLength(lane) // 7.5)
            free += max(0, room - self._sumo.lane.getLastStepVehicleNumber(lane))
        return free

    def lane_length_m(self, lane: str) -> float:
        return float(self._sumo.lane.getLength(lane))

    def detected_veh(self, detector: str) -> int:
        """Vehicles on a lane area detector, also those of which only a part is on it."""
        return int(self._sumo.lanearea.getLastStepVehicleNumber(detector))

    def speed_limit_m_per_s(self, lane: str) -> float:
        return float(self._sumo.lane.getMaxSpeed(lane))

    def approaching(self, lane: str) -> list[Approaching]:
        """The vehicles on a lane, in SUMO's order (from the lane's begin)."""
        length_m = self._sumo.lane.getLength(lane)
        vehicle = self._sumo.vehicle
        return [
            Approaching(
                distance_m=length_m - vehicle.getLanePosition(name),
                speed_m_per_s=vehicle.getSpeed(name),
                waiting_time_s=vehicle.getWaitingTime(name),
            )
            for name in self._sumo.lane.getLastStepVehicleIDs(lane)
        ]

    def delayed(self, lane: str) -> list[Delayed]:
        """The vehicles on a lane, in SUMO's order (from the lane's begin)."""
        length_m = self._sumo.lane.getLength(lane)
        vehicle = self._sumo.vehicle
        return [
            Delayed(
                name=name,
                distance_m=length_m - vehicle.getLanePosition(name),
                speed_m_per_s=vehicle.getSpeed(name),
                stood_s=vehicle.getAccumulatedWaitingTime(name),
                time_loss_s=vehicle.getTimeLoss(name),
            )
            for name in self._sumo.lane.getLastStepVehicleIDs(lane)
        ]

    def time_loss_s(self, lanes: Sequence[str]) -> float:
        """Time lost in the last second: over the vehicles on the lanes, the sum of 1 - speed / allowed speed.

        This follows SUMO's timeLoss: the allowed speed is the vehicle's own on its lane, and a scheduled stop loses
        nothing. One difference: SUMO counts a gain for a vehicle that still brakes from a faster lane, we count 0.
        """
        vehicle = self._sumo.vehicle
        loss_s = 0.0
        for lane in lanes:
            for name in self._sumo.lane.getLastStepVehicleIDs(lane):
                speed, allowed = vehicle.getSpeed(name), vehicle.getAllowedSpeed(name)
                if allowed > 0 and (speed > 0 or not vehicle.isStopped(name)):
                    loss_s += max(0.0, 1.0 - speed / allowed)
        return loss_s

    def longest_wait_s(self, lanes: Sequence[str], *, at_least_s: float = 0.0) -> float:
        """The longest present wait (speed < 0.1 m/s without interruption) of a vehicle on the lanes, or at_least_s if
        that is longer."""
        longest_s = at_least_s
        for lane in lanes:
            # no wait is longer than the sum of all waits of its lane, so for most lanes this one call is enough
            if self._sumo.lane.getWaitingTime(lane) > longest_s:
                waits_s = map(self._sumo.vehicle.getWaitingTime, self._sumo.lane.getLastStepVehicleIDs(lane))
                longest_s = max(longest_s, *waits_s)
        return float(longest_s)

    def co2_g_per_s(self, lanes: Sequence[str]) -> float:
        """CO2 of the vehicles on the lanes, by the emission model of their vehicle types."""
        return float(sum(map(self._sumo.lane.getCO2Emission, lanes)) / 1000)

    def waiting_to_enter_veh(self, edges: Sequence[str]) -> int:
        """Vehicles that are due to depart on these edges but have not found room there yet."""
        return sum(len(self._sumo.edge.getPendingVehicles(edge)) for edge in edges)

    def waiting_persons(self, edges: Sequence[str]) -> int:
        """Persons on foot on the edges who stand still (speed < 0.1 m/s)."""
        person = self._sumo.person
        return sum(
            person.getWaitingTime(name) > 0 for edge in edges for name in self._sumo.edge.getLastStepPersonIDs(edge)
        )

    # The inside of junctions

    def inner_lanes(self, junction_ids: Sequence[str]) -> tuple[str, ...]:
        """The lanes on which vehicles cross the junctions, in the net's order; empty without internal links."""
        nodes = self._nodes(junction_ids)
        lanes = self._sumo.lane.getIDList()
        return tuple(lane for lane in lanes if _place_inside(lane.rpartition("_")[0], nodes) == "")

    def pedestrian_edges(self, junction_ids: Sequence[str]) -> tuple[str, ...]:
        """The crossings and walking areas of the junctions, in the net's order."""
        nodes = self._nodes(junction_ids)
        return tuple(edge for edge in self._sumo.edge.getIDList() if _place_inside(edge, nodes) in ("c", "w"))

    def _nodes(self, junction_ids: Sequence[str]) -> set[str]:
        """The net's nodes whose links the junctions control. One signal may control several nodes."""
        inner_lanes = (
            lane
            for junction_id in junction_ids
            for group in self._sumo.trafficlight.getControlledLinks(junction_id)
            for _, _, lane in group
        )
        return {found["node"] for lane in inner_lanes if (found := _INNER_EDGE.fullmatch(lane.rpartition("_")[0]))}


def _is_for_pedestrians(lane: str) -> bool:
    inside = _INNER_EDGE.fullmatch(lane.rpartition("_")[0])
    return inside is not None and inside["kind"] != ""


def _place_inside(edge: str, nodes: set[str]) -> str | None:
    """For an edge inside one of the nodes: "" if vehicles cross on it, c for a crossing, w for a walking area. None for
    any other edge."""
    found = _INNER_EDGE.fullmatch(edge)
    return found["kind"] if found and found["node"] in nodes else None
