"""What a scenario asks of its signals: which of them are controlled, and the bounds of their greens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tsc.errors import ConfigError, NotApplicable
from tsc.junction.timing import MAX_TIMING_S, Timing
from tsc.sumo.signal_program import GreenBounds, SignalPlan

# A longer green is not planned: the signal rests in it until somebody asks for another one.
MAX_PLANNED_GREEN_S = 300.0

BoundsFrom = Literal["same", "net"]

# Where the bounds of a stage come from, in words for a reader.
FROM_GREENS = "greens of the scenario file"
FROM_SAME = "the same for all"
FROM_PROGRAM = "minDur/maxDur of the program"
FROM_PLANNED = "planned green"
FROM_TIMING = "the timing, as no green is planned"


@dataclass(frozen=True, kw_only=True)
class SignalSettings:
    """bounds_from: where the bounds of a green come from.
      same  all stages have min_green_s and max_green_s
      net   each stage has its own: minDur and maxDur where the program has them; else at least the smaller of
            min_green_s and the planned green, at most the greater of max_green_s and the planned green (a green of
            more than MAX_PLANNED_GREEN_S counts as not planned)
    greens: bounds of every stage of single junctions, which win over both.
    junction_ids: the junctions to control; empty means all. The others keep their programs.
    yellow_s: of every phase with yellow, under all controllers but `static`; None means the program's own.
    """

    timing: Timing = field(default_factory=Timing)
    bounds_from: BoundsFrom = "same"
    greens: Mapping[str, tuple[GreenBounds, ...]] = field(default_factory=dict, hash=False)
    junction_ids: tuple[str, ...] = ()
    yellow_s: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the timing. Of defaults there is none, as before there were any, so that
        records and settings of that time still hold."""
        values: dict[str, Any] = {}
        if self.bounds_from != "same":
            values["bounds_from"] = self.bounds_from
        if self.greens:
            values["greens"] = {name: [list(pair) for pair in bounds] for name, bounds in sorted(self.greens.items())}
        if self.junction_ids:
            values["junctions"] = list(self.junction_ids)
        if self.yellow_s is not None:
            values["yellow_s"] = self.yellow_s
        return values

    def bounds_of(self, plan: SignalPlan) -> tuple[GreenBounds, ...]:
        """The bounds of each stage of a plan.

        Raises ConfigError if `greens` does not fit it, NotApplicable if the program contradicts itself.
        """
        return tuple(bounds for bounds, _ in self._bounds_and_sources(plan))

    def source_of(self, plan: SignalPlan) -> tuple[str, ...]:
        """Where the bounds of each stage of a plan come from: one of the FROM_… texts. Raises as bounds_of."""
        return tuple(source for _, source in self._bounds_and_sources(plan))

    def _bounds_and_sources(self, plan: SignalPlan) -> list[tuple[GreenBounds, str]]:
        stages = plan.held_phases
        if plan.junction_id in self.greens:
            given = self.greens[plan.junction_id]
            if len(given) != len(stages):
                raise ConfigError(
                    f"greens of junction {plan.junction_id!r} has bounds for {len(given)} stages, but its program has "
                    f"{len(stages)}: look at them with data_tools/inspect_scenario.py"
                )
            return [(bounds, FROM_GREENS) for bounds in given]
        return [self._of_stage(plan, held) for held in stages]

    def _of_stage(self, plan: SignalPlan, held: tuple[int, ...]) -> tuple[GreenBounds, str]:
        timing = self.timing
        if self.bounds_from == "same":
            return (timing.min_green_s, timing.max_green_s), FROM_SAME
        phases = [plan.phases[index] for index in held]
        planned_s = sum(phase.duration_s for phase in phases)
        shortest_s: float = min(timing.min_green_s, planned_s)
        longest_s: float = timing.max_green_s
        source = FROM_TIMING
        if planned_s <= MAX_PLANNED_GREEN_S:
            longest_s = max(longest_s, planned_s)
            source = FROM_PLANNED
        if plan.type != "static" or any(phase.has_bounds for phase in phases):
            source = FROM_PROGRAM
            shortest_s = sum(phase.duration_s if (s := phase.min_duration_s) is None else s for phase in phases)
            longest_s = sum(phase.duration_s if (s := phase.max_duration_s) is None else s for phase in phases)
        # greens end at whole seconds
        shortest, longest = max(1, math.ceil(shortest_s)), min(MAX_TIMING_S, math.floor(longest_s))
        if longest < shortest:
            raise NotApplicable(
                f"has a stage with minDur {shortest_s:g} s and maxDur {longest_s:g} s, which leave no green of whole "
                "seconds"
            )
        return (shortest, longest), source
