"""The controllers that an evaluation can compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsc.errors import ConfigError
from tsc.rules.gap_out import GapOut
from tsc.rules.longest_queue import LongestQueue
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.random_choice import Random

if TYPE_CHECKING:
    from tsc.cost.outcome import OutcomeSettings
    from tsc.rules.controller import Controller

# Controllers of a kind that a user names and gives a model for, as llm:NAME=FOLDER, student:NAME=FILE and
# program:NAME=FILE.
LANGUAGE_MODEL = "llm"
STUDENT = "student"
PROGRAM = "program"
# The name becomes part of file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_EVERY_SECOND = "Keeps to both, but may end a green in any second between them."


@dataclass(frozen=True, kw_only=True)
class ControllerKind:
    """A controller, with what the report says of it.

    description: what it does. bounds: how far it keeps to the common minimum and maximum green.
    by_sumo: True if SUMO switches by a program (tsc.controllers.signal_plans.plan_signals), False if the controller
    decides at our decision points.
    is_classical: True if a city could run it. Of webster this holds with counts of earlier days; here it knows the very
    demand to come, so it can be too good, but not too weak, as a reference.
    """

    name: str
    description: str
    bounds: str = (
        "Keeps to both. It decides at the minimum green and after every green extension; the maximum ends the green."
    )
    by_sumo: bool = False
    is_classical: bool = False


_KINDS = (
    ControllerKind(
        name="static",
        description="The net's own signal program, unchanged.",
        bounds="Does not use them: the greens are those of the program.",
        by_sumo=True,
        is_classical=True,
    ),
    ControllerKind(
        name="actuated",
        description="SUMO's actuated control: a green ends when no vehicle has passed its detectors for 3 s.",
        bounds=_EVERY_SECOND,
        by_sumo=True,
        is_classical=True,
    ),
    ControllerKind(
        name="delay_based",
        description="SUMO's delay-based control: a green continues while delayed vehicles near the stop line can pass.",
        bounds=_EVERY_SECOND,
        by_sumo=True,
        is_classical=True,
    ),
    ControllerKind(
        name="webster",
        description="A fixed-time plan by Webster's formula (1958), computed by SUMO's tlsCycleAdaptation. It knows "
        "the whole demand beforehand.",
        bounds="Keeps to the minimum. Greens may exceed the maximum, because a cycle may last up to 120 s.",
        by_sumo=True,
        is_classical=True,
    ),
    ControllerKind(
        name="gap_out",
        description="Extends the green while a vehicle is within 45 m of the stop line of a green lane, like actuated "
        "signals.",
        is_classical=True,
    ),
    ControllerKind(
        name="max_pressure",
        description="Extends the green while no other stage has a higher pressure: vehicles upstream minus vehicles "
        "downstream (Varaiya 2013).",
        is_classical=True,
    ),
    ControllerKind(
        name="longest_queue",
        description="Extends the green while no other stage has more halting vehicles on its lanes.",
        is_classical=True,
    ),
    ControllerKind(
        name="random",
        description="Extends the green with probability one half.",
    ),
    ControllerKind(
        name="lookahead",
        description="Tries both decisions in copies of the running simulation and takes the better one. It knows the "
        "future demand, so it is not a competitor, but shows what the reward's own answers reach.",
    ),
)

CONTROLLERS: Mapping[str, ControllerKind] = {kind.name: kind for kind in _KINDS}
CLASSICAL = tuple(kind.name for kind in _KINDS if kind.is_classical)
_RULES: Mapping[str, Callable[[], Controller]] = {
    "gap_out": GapOut,
    "max_pressure": MaxPressure,
    "longest_queue": LongestQueue,
}


def rule_controller(name: str, *, seed: int, lookahead: OutcomeSettings) -> Controller:
    """A controller that decides at our decision points without a language model. Raises ConfigError."""
    if name in _RULES:
        return _RULES[name]()
    if name == "random":
        return Random(seed)
    if name == "lookahead":
        # imported here, because it loads libsumo, which a list of the names does not need
        from tsc.controllers.lookahead import Lookahead

        return Lookahead(lookahead)
    known = ", ".join(kind.name for kind in _KINDS if not kind.by_sumo)
    raise ConfigError(f"no controller named {name!r} decides by a rule: choose one of {known}")
