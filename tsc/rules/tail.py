"""The tail: the controller that runs all junctions after a tested decision."""

from __future__ import annotations

from collections.abc import Callable

from tsc.rules.controller import Controller
from tsc.rules.gap_out import GapOut
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.static import Static

_TAILS: dict[str, Callable[[], Controller]] = {"static": Static, "gap_out": GapOut, "max_pressure": MaxPressure}


def tail_controller(name: str) -> Controller:
    """The tail of this name, one of tsc.cost.outcome.TAILS."""
    return _TAILS[name]()
