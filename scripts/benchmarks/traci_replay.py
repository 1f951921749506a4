"""The replay as tutorials write it: a new sumo for each answer, over TraCI.

Run as a program of its own, `python -m benchmarks.traci_replay`, because importing libsumo also takes the name traci.
Reads {"requests": [{"command", "junction_id", "remaining_s"}], "num_steps"} from standard input and writes the time of
all requests. command: sumo with its options. remaining_s: how long the green still lasts, one number per answer.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import traci

from benchmarks.stopwatch import cost_of


def replay(command: list[str], junction_id: str, remaining_s: float, num_steps: int) -> int:
    """The queue of the junction over all steps, in vehicle-seconds."""
    traci.start(command, stdout=subprocess.DEVNULL)
    lanes = dict.fromkeys(traci.trafficlight.getControlledLanes(junction_id))
    traci.trafficlight.setPhaseDuration(junction_id, remaining_s)
    queue_veh_s = 0
    for _ in range(num_steps):
        traci.simulationStep()
        queue_veh_s += sum(map(traci.lane.getLastStepHaltingNumber, lanes))
    traci.close()
    return queue_veh_s


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    queues_veh_s: list[int] = []

    def replay_all() -> None:
        for request in job["requests"]:
            for remaining_s in request["remaining_s"]:
                queue = replay(request["command"], request["junction_id"], remaining_s, job["num_steps"])
                queues_veh_s.append(queue)

    # TraCI prints "Retrying in 1 seconds" at every start
    with contextlib.redirect_stdout(sys.stderr):
        cost = cost_of(replay_all, len(job["requests"]))
    print(json.dumps({"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "queue_veh_s": queues_veh_s}))


if __name__ == "__main__":
    main()
