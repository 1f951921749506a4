"""The controllers an evaluation can compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsc.errors import ConfigError

if TYPE_CHECKING:
    from tsc.cost.outcome import OutcomeSettings
    from tsc.rules.controller import Controller

LANGUAGE_MODEL = "llm"


@dataclass(frozen=True, kw_only=True)
class ControllerKind:
    """description, bounds: for users; bounds says how far it keeps to the common minimum and maximum green.
    by_sumo: SUMO switches by its program (tsc.controllers.signal_plans.plan_files); False: it decides at our decision
    points."""

    name: str
    description: str
    bounds: str
    by_sumo: bool


_AT_DECISION_POINTS = (
    "Keeps to both: it decides from the minimum green on, every green extension, and the maximum ends it."
)
_EVERY_SECOND = "Keeps to both, but may end a green in any second between them."

_KINDS = (
    ControllerKind(
        name="static",
        description="The net's own program, left alone.",
        bounds="Does not know them: the program's own greens, whatever they are.",
        by_sumo=True,
    ),
    ControllerKind(
        name="actuated",
        description="SUMO's actuated control: a green ends when no vehicle has passed its detectors for 3 s.",
        bounds=_EVERY_SECOND,
        by_sumo=True,
    ),
    ControllerKind(
        name="delay_based",
        description="SUMO's delay-based control: a green goes on while delayed vehicles near the stop line can pass.",
        bounds=_EVERY_SECOND,
        by_sumo=True,
    ),
    ControllerKind(
        name="webster",
        description="A fixed plan by Webster's formula (1958) from the whole demand, known beforehand, with SUMO's "
        "tlsCycleAdaptation.",
        bounds="Keeps to the minimum; greens may exceed the maximum, as the plan's cycle may last up to 120 s.",
        by_sumo=True,
    ),
    ControllerKind(
        name="gap_out",
        description="Extends while a vehicle is within 45 m of the stop line of a green lane, the rule of actuated "
        "signals.",
        bounds=_AT_DECISION_POINTS,
        by_sumo=False,
    ),
    ControllerKind(
        name="max_pressure",
        description="Extends while no other stage has more vehicles upstream minus downstream (Varaiya 2013).",
        bounds=_AT_DECISION_POINTS,
        by_sumo=False,
    ),
    ControllerKind(
        name="longest_queue",
        description="Extends while no other stage has more halting vehicles on the lanes that it gives green.",
        bounds=_AT_DECISION_POINTS,
        by_sumo=False,
    ),
    ControllerKind(
        name="random",
        description="Extends with probability one half.",
        bounds=_AT_DECISION_POINTS,
        by_sumo=False,
    ),
    ControllerKind(
        name="lookahead",
        description="Tries both answers in copies of the running simulation and takes the better: knows the future "
        "demand, a ceiling rather than a rival.",
        bounds=_AT_DECISION_POINTS,
        by_sumo=False,
    ),
)

CONTROLLERS: Mapping[str, ControllerKind] = {kind.name: kind for kind in _KINDS}


def rule_controller(name: str, *, seed: int, lookahead: OutcomeSettings) -> Controller:
    """One that decides by a rule at our decision points. Raises ConfigError."""
    # imported here, as they start libsumo, which a list of names can do without
    match name:
        case "gap_out":
            from tsc.rules.gap_out import GapOut

            return GapOut()
        case "max_pressure":
            from tsc.rules.max_pressure import MaxPressure

            return MaxPressure()
        case "longest_queue":
            from tsc.rules.longest_queue import LongestQueue

            return LongestQueue()
        case "random":
            from tsc.rules.random_choice import Random

            return Random(seed)
        case "lookahead":
            from tsc.controllers.lookahead import Lookahead

            return Lookahead(lookahead)
    known = ", ".join(kind.name for kind in _KINDS if not kind.by_sumo)
    raise ConfigError(f"no controller named {name!r} decides by a rule: choose one of {known}")
