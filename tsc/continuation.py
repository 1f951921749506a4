"""What an answer leads to: the simulation continued with that answer for the horizon, and its cost.

One function for the forked simulation and for the replayed state, so that both mean the same.
"""

from __future__ import annotations

import os
import struct
import traceback

from tsc.controllers import tail_controller
from tsc.decision import Decision
from tsc.errors import ReplayError
from tsc.measures import Scene, measure_named
from tsc.outcome import Outcomes, OutcomeSettings
from tsc.signal_control import SignalControl
from tsc.simulation import detach_outputs_of_fork


def continue_with(
    control: SignalControl, junction_id: str, decision: Decision, settings: OutcomeSettings
) -> tuple[float, ...]:
    """Apply `decision` to the due junction, let the tail decide everything else and everything after, and return the
    costs over the horizon: of the measure, then of the terms in the order of settings.terms. The simulation moves on
    by horizon_s.

    Raises ReplayError where the junction is at no decision point, ConfigError for a measure that cannot be imported.
    """
    control.program(junction_id)
    clock = control.clocks[junction_id]
    timing = control.timing
    # datasets of other generators may decide off our grid of extensions, but never outside the bounds
    if not (clock.green and timing.min_green_s <= clock.elapsed_green_s < timing.max_green_s):
        raise ReplayError(
            f"junction {junction_id!r} has nothing to decide at {control.simulation.time_s:g} s "
            f"({'green' if clock.green else 'clearing'}, {clock.elapsed_green_s:g} s of green): a decision lies in a "
            f"green, from {timing.min_green_s} s to below {timing.max_green_s} s"
        )
    due = control.due_junctions()
    tail = tail_controller(settings.tail)
    measures = [measure_named(name) for name in settings.measures]
    scene = Scene(control, junction_id, settings.scope)
    meters = [(number, measure.begin(scene), measure.combine) for number, measure in enumerate(measures)]
    costs = [0.0] * len(meters)
    decisions = {**tail.decide(control, [name for name in due if name != junction_id]), junction_id: decision}
    for second in range(settings.horizon_s):
        if second:
            due = control.due_junctions()
            decisions = tail.decide(control, due) if due else {}
        control.advance(decisions)
        for number, read, combine in meters:
            costs[number] = combine(costs[number], read())
    return tuple(costs)


def outcomes_by_fork(control: SignalControl, junction_id: str, settings: OutcomeSettings) -> Outcomes:
    """Both outcomes, each in a forked copy of the running simulation, which itself stays where it is.

    A fork continues bit-exactly (tests hold this). Only for processes without other threads. Raises ReplayError.
    """
    children = {decision: _fork(control, junction_id, decision, settings) for decision in Decision}
    costs = {decision: _collect(*child) for decision, child in children.items()}
    return Outcomes.from_costs(settings, costs[Decision.YES], costs[Decision.NO])


def _fork(control: SignalControl, junction_id: str, decision: Decision, settings: OutcomeSettings) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        status = 1
        try:
            os.close(read_end)
            detach_outputs_of_fork()
            costs = continue_with(control, junction_id, decision, settings)
            os.write(write_end, b"=" + struct.pack(f"{len(costs)}d", *costs))
            status = 0
        except BaseException:
            os.write(write_end, b"!" + traceback.format_exc()[-4000:].encode())
        finally:
            # without the parent's exit handlers, which would close the parent's files a second time
            os._exit(status)
    os.close(write_end)
    return process_id, read_end


def _collect(process_id: int, read_end: int) -> tuple[float, ...]:
    with os.fdopen(read_end, "rb") as pipe:
        message = pipe.read()
    _, status = os.waitpid(process_id, 0)
    if message[:1] != b"=":
        cause = message[1:].decode(errors="replace").strip() or f"status {os.waitstatus_to_exitcode(status)}"
        raise ReplayError(f"a forked continuation failed: {cause}")
    return struct.unpack(f"{len(message) // 8}d", message[1:])
