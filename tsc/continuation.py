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
from tsc.outcome import Outcomes, OutcomeSettings
from tsc.signal_control import SignalControl
from tsc.simulation import detach_outputs_of_fork


def continue_with(control: SignalControl, junction_id: str, decision: Decision, settings: OutcomeSettings) -> float:
    """Apply `decision` to the due junction, let the tail decide everything else and everything after, and return the
    cost over the horizon. The simulation moves on by horizon_s.

    Cost queue_veh_s: halting vehicles on the scope's incoming lanes, summed over the horizon's seconds (veh·s).
    Raises ReplayError where the junction is at no decision point.
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
    lanes = control.incoming_lanes([junction_id] if settings.scope == "junction" else None)
    others = [name for name in due if name != junction_id]
    control.advance({**tail.decide(control, others), junction_id: decision})
    cost = control.simulation.queue_veh(lanes)
    for _ in range(settings.horizon_s - 1):
        control.advance(tail.decide(control, control.due_junctions()))
        cost += control.simulation.queue_veh(lanes)
    return float(cost)


def outcomes_by_fork(control: SignalControl, junction_id: str, settings: OutcomeSettings) -> Outcomes:
    """Both outcomes, each in a forked copy of the running simulation, which itself stays where it is.

    A fork continues bit-exactly (tests hold this). Only for processes without other threads. Raises ReplayError.
    """
    children = {decision: _fork(control, junction_id, decision, settings) for decision in Decision}
    costs = {decision: _collect(*child) for decision, child in children.items()}
    return Outcomes(yes=costs[Decision.YES], no=costs[Decision.NO])


def _fork(control: SignalControl, junction_id: str, decision: Decision, settings: OutcomeSettings) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        status = 1
        try:
            os.close(read_end)
            detach_outputs_of_fork()
            cost = continue_with(control, junction_id, decision, settings)
            os.write(write_end, b"=" + struct.pack("d", cost))
            status = 0
        except BaseException:
            os.write(write_end, b"!" + traceback.format_exc()[-4000:].encode())
        finally:
            # without the parent's exit handlers, which would close the parent's files a second time
            os._exit(status)
    os.close(write_end)
    return process_id, read_end


def _collect(process_id: int, read_end: int) -> float:
    with os.fdopen(read_end, "rb") as pipe:
        message = pipe.read()
    _, status = os.waitpid(process_id, 0)
    if message[:1] != b"=":
        cause = message[1:].decode(errors="replace").strip() or f"status {os.waitstatus_to_exitcode(status)}"
        raise ReplayError(f"a forked continuation failed: {cause}")
    return float(struct.unpack("d", message[1:])[0])
