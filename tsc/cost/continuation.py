"""What an answer leads to: the simulation continued with that answer for the horizon, and its cost.

The same function continues the forked simulation and the replayed state, so that both mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tsc.cost.measures import Scene, measure_named
from tsc.cost.outcome import Outcomes, OutcomeSettings, import_measures
from tsc.errors import ReplayError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.tail import Tail
from tsc.sumo.fork import ForkedCall
from tsc.sumo.simulation import detach_outputs_of_fork

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """costs: over the horizon, of the measure, then of the terms in the order of settings.terms.
    end: digest of the traffic at the end of the horizon (Simulation.traffic_digest)."""

    costs: tuple[float, ...]
    end: str


class CostMeter:
    """The costs of a running simulation from now on: of the measure, then of the terms."""

    def __init__(self, control: SignalControl, junction_id: str, settings: OutcomeSettings) -> None:
        """Raises ConfigError for a measure that cannot be imported."""
        measures = [measure_named(name) for name in settings.measures]
        scene = Scene(control, junction_id, settings.scope)
        self._meters = [(number, measure.begin(scene), measure.combine) for number, measure in enumerate(measures)]
        self._costs = [0.0] * len(measures)

    def read(self) -> None:
        """Call this after each simulated second."""
        costs = self._costs
        for number, read, combine in self._meters:
            costs[number] = combine(costs[number], read())

    @property
    def costs(self) -> tuple[float, ...]:
        return tuple(self._costs)


def check_decision_point(control: SignalControl, junction_id: str) -> None:
    """Raises ReplayError if the junction has nothing to decide now, and UnknownJunction."""
    control.program(junction_id)
    clock = control.clocks[junction_id]
    timing = control.timing_of(junction_id)
    if not (clock.green and timing.may_decide(clock.elapsed_green_s)):
        raise ReplayError(
            f"junction {junction_id!r} has nothing to decide at {control.simulation.time_s:g} s "
            f"({'green' if clock.green else 'clearing'}, {clock.elapsed_green_s:g} s of green): a decision lies in a "
            f"green, from {timing.min_green_s} s to below {timing.max_green_s} s"
        )


def continue_with(
    control: SignalControl,
    junction_id: str,
    decision: Decision,
    settings: OutcomeSettings,
    *,
    on_second: Callable[[], None] | None = None,
) -> Continuation:
    """Apply `decision` to the due junction. The tail controller decides everything else and everything after. The
    simulation moves on by horizon_s.

    on_second: is called after each simulated second.
    Raises ReplayError if the junction is not at a decision point, and ConfigError for a measure that cannot be
    imported or a tail_step_s that does not fit.
    """
    check_decision_point(control, junction_id)
    tail = Tail(control, settings.tail, settings.tail_step_s)
    meter = CostMeter(control, junction_id, settings)
    decisions = {**tail.decide(decided=junction_id), junction_id: decision}
    for second in range(settings.horizon_s):
        control.advance(tail.decide() if second else decisions)
        meter.read()
        if on_second is not None:
            on_second()
    return Continuation(costs=meter.costs, end=control.simulation.traffic_digest())


def continuations_by_fork(
    control: SignalControl, junction_id: str, settings: OutcomeSettings
) -> dict[Decision, Continuation]:
    """Both continuations, each in a forked copy of the running simulation, which itself does not move.

    A fork continues bit for bit as the simulation does (tests check this). Use it only in processes without other
    threads. Raises ReplayError, and ConfigError for a measure that cannot be imported.
    """
    import_measures(settings)
    return in_two_forks(lambda decision: continue_with(control, junction_id, decision, settings))


def in_two_forks(function: Callable[[Decision], Result]) -> dict[Decision, Result]:
    """Call the function with each decision, each time in a forked copy of the running simulation. See
    continuations_by_fork."""

    def call(decision: Decision) -> Result:
        detach_outputs_of_fork()
        return function(decision)

    calls = {decision: ForkedCall(partial(call, decision)) for decision in Decision}
    return {decision: call.result() for decision, call in calls.items()}


def outcomes_of(continuations: Mapping[Decision, Continuation], settings: OutcomeSettings) -> Outcomes:
    return Outcomes.from_costs(settings, continuations[Decision.YES].costs, continuations[Decision.NO].costs)


def outcomes_by_fork(control: SignalControl, junction_id: str, settings: OutcomeSettings) -> Outcomes:
    """See continuations_by_fork."""
    return outcomes_of(continuations_by_fork(control, junction_id, settings), settings)
