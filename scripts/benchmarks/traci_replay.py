"""The replay as tutorials write it: a new sumo for each answer, over TraCI.

It needs a process of its own, because importing libsumo also takes the name traci.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Sequence

import traci

from benchmarks.stopwatch import Cost, cost_of
from tsc.errors import ReplayError

# sumo with its options, the junction, and how long the green still lasts in seconds
TraciReplay = tuple[list[str], str, int]


def queue_veh_s(replay: TraciReplay, num_steps: int) -> int:
    """The queue of the junction over all steps."""
    command, junction_id, remaining_s = replay
    traci.start(command, stdout=subprocess.DEVNULL)
    lanes = dict.fromkeys(traci.trafficlight.getControlledLanes(junction_id))
    traci.trafficlight.setPhaseDuration(junction_id, remaining_s)
    queue_veh_s = 0
    for _ in range(num_steps):
        traci.simulationStep()
        queue_veh_s += sum(map(traci.lane.getLastStepHaltingNumber, lanes))
    traci.close()
    return queue_veh_s


def queues_veh_s(replays: Sequence[TraciReplay], num_steps: int) -> list[int]:
    """The queue of each replay. Raises ReplayError."""
    # TraCI prints "Retrying in 1 seconds" at every start
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return [queue_veh_s(replay, num_steps) for replay in replays]
        except (traci.FatalTraCIError, traci.TraCIException) as error:
            raise ReplayError(f"a replay over TraCI failed: {error}") from error


def traci_cost(replays: Sequence[TraciReplay], num_steps: int, num_requests: int) -> Cost:
    return cost_of(lambda: queues_veh_s(replays, num_steps), num_requests)
