"""The tail: the controller that runs all junctions after a tested decision."""

from __future__ import annotations

from collections.abc import Callable

from tsc.errors import ConfigError
from tsc.rules.controller import Controller
from tsc.rules.gap_out import GapOut
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.static import Static

_TAILS: dict[str, Callable[[], Controller]] = {"static": Static, "gap_out": GapOut, "max_pressure": MaxPressure}


def tail_controller(name: str) -> Controller:
    """The tail of this name. Raises ConfigError."""
    try:
        return _TAILS[name]()
    except KeyError:
        raise ConfigError(f"tail is {name!r}: choose one of {', '.join(_TAILS)}") from None
