"""The same replay written without this project, for comparison.

All alternatives simulate 2 × horizon_s seconds per replay and read the junction's queue after each. The ones that use
libsumo need their own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import process_time

from benchmarks.stopwatch import Cost, cost_of
from benchmarks.traci_replay import TraciReplay
from tsc.files import write_atomically
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.replays.request import ReplayRequest
from tsc.replays.state_archive import state_bytes
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation


def bare_step_cpu_s(files: SumoFiles, duration_s: int, timing: Timing) -> list[float]:
    """The CPU time of simulationStep alone, for each second of an episode in one simulation.

    Max-pressure, the replays' tail, runs the signals, so that there is as much traffic as in a replay. Its time is not
    counted.
    """
    simulation = Simulation(files)
    control = SignalControl(simulation, timing)
    control.start()
    controller = MaxPressure()
    step_cpu_s = []
    for _ in range(duration_s):
        control.apply(controller.decide(control, control.due_junctions()))
        begin = process_time()
        simulation.step()
        step_cpu_s.append(process_time() - begin)
        control.after_step()
    simulation.close()
    return step_cpu_s


def bare_cost(step_cpu_s: Sequence[float], decision_times_s: Sequence[float], horizon_s: int) -> Cost:
    """The cost of the steps that replays of these decision points simulate: horizon_s from each point, per answer.

    Wall time equals CPU time here, because steps do not wait.
    """
    total_s = sum(len(Decision) * sum(step_cpu_s[int(time) : int(time) + horizon_s]) for time in decision_times_s)
    return Cost(num_units=len(decision_times_s), wall_s=total_s, cpu_s=total_s)


def state_on_disk(request: ReplayRequest) -> Path:
    """The saved state in a file of its own, as SUMO reads it."""
    if request.state_path.is_file():
        return request.state_path
    path = request.state_path.parents[1] / f"alone-{request.state_path.name}"
    write_atomically(path, state_bytes(request.state_path))
    return path


def fresh_libsumo_queue_veh_s(requests: Sequence[ReplayRequest], horizon_s: int) -> list[int]:
    """The queues of replays that start libsumo anew for each answer (with --load-state), step, and close it."""
    queues_veh_s = []
    for request in requests:
        files = request.sumo.files_in(Path(request.dataset_dir))
        for decision in Decision:
            simulation = Simulation(files, state_file=state_on_disk(request))
            lanes = simulation.program(request.junction_id).incoming_lanes
            simulation.set_phase_remaining(request.junction_id, _green_to_come_s(request, decision))
            queue_veh_s = 0
            for _ in range(horizon_s):
                simulation.step()
                queue_veh_s += simulation.queue_veh(lanes)
            simulation.close()
            queues_veh_s.append(queue_veh_s)
    return queues_veh_s


def fresh_libsumo_cost(requests: Sequence[ReplayRequest], horizon_s: int) -> Cost:
    return cost_of(lambda: fresh_libsumo_queue_veh_s(requests, horizon_s), len(requests))


def traci_replays(requests: Sequence[ReplayRequest]) -> list[TraciReplay]:
    """For benchmarks.traci_replay: the replay of each answer to each request."""
    replays = []
    for request in requests:
        files = request.sumo.files_in(Path(request.dataset_dir))
        command = [str(sumo_binary("sumo")), *files.options(), "--load-state", str(state_on_disk(request))]
        command += ["--no-step-log", "--no-warnings", "--duration-log.disable"]
        replays += [(command, request.junction_id, _green_to_come_s(request, decision)) for decision in Decision]
    return replays


def _green_to_come_s(request: ReplayRequest, decision: Decision) -> int:
    """The seconds that the green still lasts after the decision; then the program continues by itself."""
    return request.green_extension_s if decision is Decision.YES else 0
