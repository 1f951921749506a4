"""The controllers an evaluation can compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsc.controllers.controller import Controller
from tsc.controllers.gap_out import GapOut
from tsc.controllers.lookahead import Lookahead
from tsc.controllers.max_pressure import MaxPressure
from tsc.controllers.random_choice import Random
from tsc.errors import ConfigError
from tsc.outcome import OutcomeSettings

LANGUAGE_MODEL = "llm"


@dataclass(frozen=True, kw_only=True)
class ControllerKind:
    """description, bounds: for users; bounds says how far it keeps to the common minimum and maximum green.
    by_sumo: SUMO switches by its program; False: it decides at our decision points."""

    name: str
    description: str
    bounds: str
    by_sumo: bool


CONTROLLERS: Mapping[str, ControllerKind] = {
    name: ControllerKind(name=name, description="", bounds="", by_sumo=name == "static")
    for name in ("static", "gap_out", "max_pressure", "random", "lookahead")
}


def rule_controller(name: str, *, seed: int, lookahead: OutcomeSettings) -> Controller:
    """One that decides by a rule. Raises ConfigError."""
    match name:
        case "gap_out":
            return GapOut()
        case "max_pressure":
            return MaxPressure()
        case "random":
            return Random(seed)
        case "lookahead":
            return Lookahead(lookahead)
    raise ConfigError(f"controller {name!r} is unknown: choose of {', '.join(CONTROLLERS)}")
