"""The costs by which the continuation of a simulation can be judged, and where they look.

A measure is begun once, at the decision, and read after every simulated second. Its readings add up to the cost over
the horizon; for longest_wait_s, the largest reading is the cost. Smaller is better. This module does not import SUMO,
so that settings can be checked where SUMO must not be loaded.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tsc.errors import ConfigError, ReplayError, did_you_mean
from tsc.user_code import USER_PREFIX, is_user_function, user_function

if TYPE_CHECKING:
    from tsc.junction.signal_control import SignalControl

SCOPES = ("junction", "neighbours", "network")

Reading = Callable[[], float]


def edge_of(lane: str) -> str:
    return lane.rpartition("_")[0]


@dataclass(frozen=True)
class Scene:
    """What a measure can look at: the running simulation under its control, the tested junction, and the scope."""

    control: SignalControl
    junction_id: str
    scope: str

    @cached_property
    def junction_ids(self) -> tuple[str, ...]:
        """The junctions whose traffic counts, in the net's order.

        By scope: `junction`, the tested one; `neighbours`, it and the controlled junctions one edge away, upstream or
        downstream; `network`, every controlled junction.
        """
        programs = self.control.programs
        if self.scope == "junction":
            return (self.junction_id,)
        if self.scope == "network":
            return tuple(programs)
        tested = programs[self.junction_id]
        into = {edge_of(lane) for lane in tested.incoming_lanes}
        out = {edge_of(lane) for lane in tested.outgoing_lanes}
        return tuple(
            name
            for name, program in programs.items()
            if name == self.junction_id
            or any(edge_of(lane) in out for lane in program.incoming_lanes)
            or any(edge_of(lane) in into for lane in program.outgoing_lanes)
        )

    @cached_property
    def incoming_lanes(self) -> tuple[str, ...]:
        """The incoming lanes of the scope's junctions, in link order, each once."""
        return self.control.incoming_lanes(self.junction_ids)

    @cached_property
    def outgoing_lanes(self) -> tuple[str, ...]:
        programs = self.control.programs
        return tuple(dict.fromkeys(lane for name in self.junction_ids for lane in programs[name].outgoing_lanes))

    @cached_property
    def inner_lanes(self) -> tuple[str, ...]:
        """The lanes inside the scope's junctions."""
        return self.control.simulation.inner_lanes(self.junction_ids)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """begin: returns the function that reads one simulated second. combine: joins the cost so far with the next
    reading."""

    unit: str
    begin: Callable[[Scene], Reading]
    combine: Callable[[float, float], float] = operator.add


def _queue(scene: Scene) -> Reading:
    queue_veh, lanes = scene.control.simulation.queue_veh, scene.incoming_lanes
    return lambda: queue_veh(lanes)


def _waiting_time(scene: Scene) -> Reading:
    simulation = scene.control.simulation
    lanes = scene.incoming_lanes + scene.inner_lanes
    entries = tuple(dict.fromkeys(edge_of(lane) for lane in scene.incoming_lanes))
    return lambda: simulation.queue_veh(lanes) + simulation.waiting_to_enter_veh(entries)


def _time_loss(scene: Scene) -> Reading:
    time_loss_s, lanes = scene.control.simulation.time_loss_s, scene.incoming_lanes + scene.inner_lanes
    return lambda: time_loss_s(lanes)


def _pressure(scene: Scene) -> Reading:
    simulation = scene.control.simulation
    programs = scene.control.programs
    movements = [pair for name in scene.junction_ids for pair in programs[name].lanes_downstream.items()]

    def read() -> float:
        pressure = 0.0
        for incoming, outgoing in movements:
            upstream_veh = simulation.vehicles_veh((incoming,))
            if upstream_veh:  # an empty lane has no pressure, whatever lies downstream
                pressure += max(0.0, upstream_veh - simulation.vehicles_veh(outgoing) / len(outgoing))
        return pressure

    return read


def _emissions(scene: Scene) -> Reading:
    co2_g_per_s = scene.control.simulation.co2_g_per_s
    lanes = tuple(dict.fromkeys(scene.incoming_lanes + scene.inner_lanes + scene.outgoing_lanes))
    return lambda: co2_g_per_s(lanes)


def _switches(scene: Scene) -> Reading:
    clock = scene.control.clocks[scene.junction_id]
    was_green, elapsed_s = clock.green, clock.elapsed_green_s

    def read() -> float:
        nonlocal was_green, elapsed_s
        # a green that continues is one second older; after a change without yellow, its count has begun again
        ended = was_green and not (clock.green and clock.elapsed_green_s > elapsed_s)
        was_green, elapsed_s = clock.green, clock.elapsed_green_s
        return float(ended)

    return read


def _longest_wait(scene: Scene) -> Reading:
    longest_wait_s, lanes = scene.control.simulation.longest_wait_s, scene.incoming_lanes
    longest_s = 0.0

    def read() -> float:
        nonlocal longest_s
        longest_s = longest_wait_s(lanes, at_least_s=longest_s)
        return longest_s

    return read


def _pedestrians_waiting(scene: Scene) -> Reading:
    simulation = scene.control.simulation
    edges = simulation.pedestrian_edges(scene.junction_ids)
    if not edges:
        return lambda: 0.0
    return lambda: simulation.waiting_persons(edges)


_MEASURES = {
    "queue_veh_s": Measure(unit="vehicle-seconds", begin=_queue),
    "waiting_time_s": Measure(unit="s", begin=_waiting_time),
    "time_loss_s": Measure(unit="s", begin=_time_loss),
    "pressure_veh_s": Measure(unit="vehicle-seconds", begin=_pressure),
    "emissions_co2_g": Measure(unit="g", begin=_emissions),
    "switches": Measure(unit="", begin=_switches),
    "longest_wait_s": Measure(unit="s", begin=_longest_wait, combine=max),
    "pedestrians_waiting_s": Measure(unit="s", begin=_pedestrians_waiting),
}
MEASURES = tuple(_MEASURES)


def unit_of(name: str) -> str:
    """The unit in words. It is empty for a count and for a user's own measure."""
    return _MEASURES[name].unit if name in _MEASURES else ""


def check_measure_name(name: str) -> str:
    """Returns `name` if it is one of MEASURES or written as pkg://module:function. Nothing is imported.

    Raises ConfigError with the nearest spelling.
    """
    if name in MEASURES or is_user_function(name):
        return name
    if name.startswith(USER_PREFIX):
        raise ConfigError(f"measure {name!r}: write a function of your own as {USER_PREFIX}module:function")
    meant = did_you_mean(name, MEASURES)
    raise ConfigError(
        f"measure {name!r} is unknown: {meant}choose one of {', '.join(MEASURES)}, or a function of your own as "
        f"{USER_PREFIX}module:function"
    )


def measure_named(name: str) -> Measure:
    """The measure of this name. Imports a user's own function. Raises ConfigError if there is no measure of that name,
    or if its import fails."""
    check_measure_name(name)
    return _MEASURES[name] if name in _MEASURES else _user_measure(name)


def _user_measure(name: str) -> Measure:
    function = user_function(name, "measure")

    def begin(scene: Scene) -> Reading:
        simulation, lanes = scene.control.simulation, scene.incoming_lanes

        def read() -> float:
            value = function(simulation, lanes)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ReplayError(
                    f"measure {name!r} returned {value!r} at {simulation.time_s:g} s: it must return a finite number"
                )
            return float(value)

        return read

    return Measure(unit="", begin=begin)
