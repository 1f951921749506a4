"""A replay against a SUMO process of its own, driven over TraCI by the signals alone, with the queue counted anew."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import OutcomeSettings
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.replays.replay import checked_state, replay_continuations
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.replays.saved_state import occupied_internal_lanes, with_junctions_last, with_right_of_way
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.simulation import Simulation, libsumo

HORIZON_S = 45

# Runs without anything of ours: sumo, TraCI, and the definition of a queue.
SUMO_PROCESS = """
import contextlib, json, sys, traci
job = json.load(sys.stdin)
with contextlib.redirect_stdout(sys.stderr):
    traci.start(job["command"])
queue_veh_s = 0
for state in job["signals"]:
    traci.trafficlight.setRedYellowGreenState(job["junction_id"], state)
    traci.simulationStep()
    for vehicle in traci.vehicle.getIDList():
        if traci.vehicle.getLaneID(vehicle) in job["lanes"] and traci.vehicle.getSpeed(vehicle) < 0.1:
            queue_veh_s += 1
places = sorted(
    (v, traci.vehicle.getLaneID(v), traci.vehicle.getLanePosition(v), traci.vehicle.getSpeed(v))
    for v in traci.vehicle.getIDList()
)
with contextlib.redirect_stdout(sys.stderr):
    traci.close()
print(json.dumps({"queue_veh_s": queue_veh_s, "places": places}))
"""


def _signals(request: ReplayRequest, decision: Decision, state_file: Path) -> tuple[list[str], tuple[str, ...]]:
    """The signal of every second after `decision`, under max-pressure, and the junction's incoming lanes. Writes the
    completed state to state_file."""
    files = request.sumo.files_in(Path(request.dataset_dir))
    text = checked_state(request)
    net = Simulation(files)
    next_lanes = {lane: net.next_lane(lane) or "" for lane in occupied_internal_lanes(text)}
    state_file.write_text(with_junctions_last(with_right_of_way(text, next_lanes)))
    control = SignalControl(Simulation(files, state_file=state_file), request.timing)
    control.restore(request.clocks)
    decisions = {request.junction_id: decision}
    signals = []
    for _ in range(HORIZON_S):
        control.advance(decisions)
        signals.append(libsumo.trafficlight.getRedYellowGreenState(request.junction_id))
        decisions = MaxPressure().decide(control, control.due_junctions())
    return signals, control.incoming_lanes()


def _replayed(request: ReplayRequest, decision: Decision) -> tuple[float, str]:
    continuation = replay_continuations(request, OutcomeSettings(horizon_s=HORIZON_S))[decision]
    return continuation.costs[0], continuation.end


def _in_sumo_process(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SUMO_PROCESS], input=json.dumps(job), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("index", [5, 20])
@pytest.mark.parametrize("decision", list(Decision))
def test_a_replay_is_what_a_sumo_process_does_under_the_same_signals(
    small_dataset: Path, tmp_path: Path, index: int, decision: Decision
) -> None:
    sample = Sample.model_validate(json.loads((small_dataset / "grpo_dataset.json").read_text())[index])
    request = ReplayRequest.from_sample(sample, small_dataset)
    signals, lanes = in_new_process(_signals, request, decision, tmp_path / "state.xml")
    sumo = request.sumo
    command = [
        str(Path(sys.executable).with_name("sumo")),
        "--net-file", str(small_dataset / sumo.net_file), "--load-state", str(tmp_path / "state.xml"),
        "--route-files", ",".join(str(small_dataset / name) for name in sumo.route_files),
        "--seed", str(sumo.seed), "--time-to-teleport", "-1", "--no-step-log", "--no-warnings",
    ]  # fmt: skip
    seen = _in_sumo_process(
        {"command": command, "signals": signals, "junction_id": request.junction_id, "lanes": list(lanes)}
    )
    cost, end = in_new_process(_replayed, request, decision)
    assert seen["queue_veh_s"] == cost
    places = repr([tuple(place) for place in seen["places"]])
    assert hashlib.sha256(places.encode()).hexdigest()[:16] == end
