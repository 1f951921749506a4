"""The classical controllers. All decide at the same decision points, within the same minimum and maximum green.

A controller takes the control and the ids of the due junctions and returns a decision for each, so that one that asks
a model can ask for all at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from tsc.decision import Decision
from tsc.errors import ConfigError
from tsc.signal_control import SignalControl

# A vehicle nearer than this holds its green: 3.2 s at 50 km/h, about the usual maximum time gap of actuated control.
GAP_OUT_DISTANCE_M = 45.0


class Controller(Protocol):
    """Decides for the due junctions of one second."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]: ...


def _yes_if(condition: bool) -> Decision:
    return Decision.YES if condition else Decision.NO


class Static:
    """The net's own plan, taken at decision points: extend until the program's green time is (nearest) reached."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        decisions = {}
        for name in junction_ids:
            clock = control.clocks[name]
            planned_s = control.program(name).stages[clock.stage].duration_s
            reached_s = clock.elapsed_green_s + control.timing.green_extension_s / 2
            decisions[name] = _yes_if(reached_s <= planned_s)
        return decisions


class GapOut:
    """Extend while a vehicle is within GAP_OUT_DISTANCE_M of the stop line of a green lane."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: _yes_if(self._occupied(control, name)) for name in junction_ids}

    @staticmethod
    def _occupied(control: SignalControl, junction_id: str) -> bool:
        stage = control.program(junction_id).stages[control.clocks[junction_id].stage]
        return any(
            vehicle.distance_m < GAP_OUT_DISTANCE_M
            for lane in stage.incoming_lanes
            for vehicle in control.simulation.approaching(lane)
        )


class MaxPressure:
    """Extend while no other stage has a higher pressure: vehicles upstream minus vehicles downstream (Varaiya 2013)."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        decisions = {}
        for name in junction_ids:
            pressures = [
                control.simulation.vehicles_veh(stage.incoming_lanes)
                - control.simulation.vehicles_veh(stage.outgoing_lanes)
                for stage in control.program(name).stages
            ]
            decisions[name] = _yes_if(pressures[control.clocks[name].stage] >= max(pressures))
        return decisions


class Random:
    """Extend with probability one half, drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: _yes_if(self._random.random() < 0.5) for name in junction_ids}


_TAILS: dict[str, Callable[[], Controller]] = {"static": Static, "gap_out": GapOut, "max_pressure": MaxPressure}


def tail_controller(name: str) -> Controller:
    """The controller that runs all junctions after a tested decision. Raises ConfigError."""
    try:
        return _TAILS[name]()
    except KeyError:
        raise ConfigError(f"tail is {name!r}: choose one of {', '.join(_TAILS)}") from None
