"""One episode: a scenario's demand from begin to end under one controller, and what came of it."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsc.controllers.controller import Controller
from tsc.signal_control import SignalControl
from tsc.simulation import Simulation, SumoFiles
from tsc.timing import Timing


@dataclass(frozen=True, kw_only=True)
class EpisodeMetrics:
    """mean_queue_veh: halting vehicles (speed < 0.1 m/s) on all controlled incoming lanes, mean over the seconds.
    waiting_time_s, trip_duration_s: means over all vehicles that entered the net, as SUMO's tripinfo has them
    (waitingTime, duration); trips unfinished at the end count with what they have so far. Vehicles that never got into
    the net are in none of the means and are counted in not_inserted_veh."""

    mean_queue_veh: float
    waiting_time_s: float
    trip_duration_s: float
    finished_veh: int
    unfinished_veh: int
    not_inserted_veh: int
    decisions: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_episode(files: SumoFiles, duration_s: int, timing: Timing, controller: Controller | None) -> EpisodeMetrics:
    """controller None leaves the net's own plan alone. Raises ScenarioError."""
    with tempfile.TemporaryDirectory(prefix="tsc-episode-") as folder:
        tripinfo = Path(folder, "tripinfo.xml")
        outputs = ["--tripinfo-output", str(tripinfo), "--tripinfo-output.write-unfinished"]
        simulation = Simulation(files, outputs=outputs)
        control = SignalControl(simulation, timing)
        lanes = control.incoming_lanes()
        if controller is not None:
            control.start()
        queue_veh_s = decisions = 0
        for _ in range(duration_s):
            due = control.due_junctions()
            decisions += len(due)
            control.advance(controller.decide(control, due) if controller is not None and due else {})
            queue_veh_s += simulation.queue_veh(lanes)
        waiting_to_enter = simulation.not_inserted_veh()
        simulation.close()
        trips = [element.attrib for _, element in ElementTree.iterparse(tripinfo) if element.tag == "tripinfo"]
    finished = sum(float(trip["arrival"]) >= 0 for trip in trips)
    return EpisodeMetrics(
        mean_queue_veh=queue_veh_s / duration_s,
        waiting_time_s=_mean([float(trip["waitingTime"]) for trip in trips]),
        trip_duration_s=_mean([float(trip["duration"]) for trip in trips]),
        finished_veh=finished,
        unfinished_veh=len(trips) - finished,
        not_inserted_veh=waiting_to_enter,
        decisions=decisions,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
