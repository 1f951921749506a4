"""One episode: simulate a scenario's demand from begin to end under one controller, and measure it."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from tsc.cost.measures import edge_of
from tsc.episodes.trace import Trace, TraceRecorder, greens
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.junction.signal_settings import SignalSettings
from tsc.rules.controller import Controller
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalProgram
from tsc.sumo.simulation import Simulation

# Called after each round of decisions, before they are applied: with the decision of each due junction.
OnRound = Callable[[SignalControl, Mapping[str, Decision]], None]
# Called before the first second and after every second.
OnSecond = Callable[[Simulation], None]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """The results of an episode.

    metrics: docs/evaluation.md defines each. A metric that has nothing to measure is None, never 0.
    """

    metrics: dict[str, Any]
    trace: Trace


def run_episode(
    files: SumoFiles,
    *,
    end_s: int,
    settings: SignalSettings,
    controller: Controller | None,
    warm_up_s: int = 0,
    on_round: OnRound | None = None,
    on_second: OnSecond | None = None,
) -> Episode:
    """Simulate from files.begin_s to end_s. Of the metrics, only `decisions` counts the first warm_up_s seconds.

    settings: which junctions are controlled, and the timing of greens whose program gives no bounds.
    controller: None lets SUMO switch the signals by the running programs. Raises ScenarioError and UnknownJunction.
    """
    begin_s = int(files.begin_s)
    with tempfile.TemporaryDirectory(prefix="tsc-episode-") as name:
        outputs = _Outputs(Path(name))
        simulation = Simulation(
            replace(files, additional_files=(*files.additional_files, outputs.additional_file)),
            outputs=outputs.options(begin_s + warm_up_s),
        )
        programs = read_signals(
            simulation, switched_by_sumo=controller is None, junction_ids=settings.junction_ids
        ).programs
        control = None
        if controller is not None:
            control = SignalControl(simulation, settings.timing, programs)
            control.start()
        recorder = TraceRecorder(simulation, programs, begin_s)
        decisions = teleports = 0
        if on_second is not None:
            on_second(simulation)
        for second in range(begin_s, end_s):
            if control is None or controller is None:
                simulation.step()
            else:
                due = control.due_junctions()
                answers = controller.decide(control, due) if due else {}
                if due and on_round is not None:
                    on_round(control, answers)
                control.advance(answers)
                decisions += len(due)
            recorder.record()
            if on_second is not None:
                on_second(simulation)
            if second >= begin_s + warm_up_s:
                teleports += simulation.teleports_veh()
        simulation.close()
        trace = recorder.trace()
        queue_veh = trace.queue_veh[warm_up_s:]
        metrics = {
            "mean_queue_veh": float(queue_veh.mean()),
            "p95_queue_veh": float(np.percentile(queue_veh, 95)),
            **outputs.trips(begin_s + warm_up_s, end_s),
            **_approaches(trace, warm_up_s, programs, outputs.by_edge()),
            "teleports": teleports,
            **_greens(trace, warm_up_s, programs, settings),
            "decisions": decisions,
        }
    return Episode(metrics=metrics, trace=trace)


def _greens(
    trace: Trace, warm_up_s: int, programs: Mapping[str, SignalProgram], settings: SignalSettings
) -> dict[str, Any]:
    lengths_s = []
    num_ended = num_outside = 0
    for column, (name, program) in zip(trace.stage.T, programs.items(), strict=True):
        stages, of_junction_s, ended = greens(column, warm_up_s)
        lengths_s.append(of_junction_s)
        num_ended += ended
        own = [stage.green_bounds for stage in program.stages]
        given = settings.greens.get(name, ())
        if len(given) == len(own):  # a program with several ways has other stages than its static copy
            own = list(given)
        bounds = [settings.timing.within(each) for each in own]
        shortest_s = np.array([each.min_green_s for each in bounds])[stages]
        longest_s = np.array([each.max_green_s for each in bounds])[stages]
        num_outside += int(((of_junction_s < shortest_s) | (of_junction_s > longest_s)).sum())
    length_s = np.concatenate(lengths_s)
    junction_hours = (trace.stage.shape[0] - warm_up_s) * trace.stage.shape[1] / 3600
    return {
        "switches_per_h": num_ended / junction_hours,
        "mean_green_s": float(length_s.mean()) if len(length_s) else None,
        "greens": len(length_s),
        "greens_outside_bounds": num_outside,
    }


class _Outputs:
    """SUMO's own output files of one episode."""

    def __init__(self, folder: Path) -> None:
        self.additional_file = folder / "outputs.add.xml"
        self._trips = folder / "trips.xml"
        self._edges = folder / "edges.xml"

    def options(self, measured_from_s: int) -> list[str]:
        self.additional_file.write_text(
            f'<additional><edgeData id="approaches" file={quoteattr(str(self._edges))} begin="{measured_from_s}" '
            'withInternal="false" excludeEmpty="true" writeAttributes="entered departed timeLoss"/></additional>\n'
        )
        return [
            *("--tripinfo-output", str(self._trips)),
            *("--tripinfo-output.write-unfinished", "--tripinfo-output.write-undeparted"),
            *("--device.emissions.probability", "1"),
        ]

    def trips(self, measured_from_s: int, end_s: int) -> dict[str, Any]:
        """Metrics of the vehicles that were due to depart between measured_from_s and end_s, from SUMO's tripinfo."""
        entered: list[Mapping[str, str]] = []
        co2_mg = depart_delay_s = 0.0
        not_inserted = 0
        for _, element in ElementTree.iterparse(self._trips):
            if element.tag != "tripinfo":
                continue
            trip = element.attrib
            depart_s, delay_s = float(trip["depart"]), float(trip["departDelay"])
            has_entered = depart_s >= 0
            due_s = depart_s - delay_s if has_entered else end_s - delay_s
            if measured_from_s <= due_s < end_s:
                depart_delay_s += delay_s
                if has_entered:
                    entered.append(dict(trip))
                    emissions = element.find("emissions")
                    assert emissions is not None, "every vehicle has SUMO's emission device"
                    co2_mg += float(emissions.attrib["CO2_abs"])
                else:
                    not_inserted += 1
            element.clear()

        def total(attribute: str) -> float:
            return sum(float(trip[attribute]) for trip in entered)

        def mean(attribute: str) -> float | None:
            return total(attribute) / len(entered) if entered else None

        finished = sum(float(trip["arrival"]) >= 0 for trip in entered)
        due_veh = len(entered) + not_inserted
        driven_km = total("routeLength") / 1000
        return {
            "waiting_time_s": mean("waitingTime"),
            "time_loss_s": mean("timeLoss"),
            "trip_duration_s": mean("duration"),
            "stops": mean("waitingCount"),
            "depart_delay_s": depart_delay_s / due_veh if due_veh else None,
            "delay_s": (total("timeLoss") + depart_delay_s) / due_veh if due_veh else None,
            "throughput_veh_per_h": finished / (end_s - measured_from_s) * 3600,
            "co2_g_per_km": co2_mg / 1000 / driven_km if driven_km else None,
            "finished_veh": finished,
            "unfinished_veh": len(entered) - finished,
            "not_inserted_veh": not_inserted,
        }

    def by_edge(self) -> dict[str, tuple[int, float]]:
        """Vehicles that came onto each edge in the measured period, and the time that vehicles lost there (s), from
        SUMO's edgeData."""
        return {
            edge.attrib["id"]: (
                int(edge.attrib["entered"]) + int(edge.attrib["departed"]),
                float(edge.attrib.get("timeLoss", 0.0)),
            )
            for edge in ElementTree.parse(self._edges).getroot().iter("edge")
        }


def _approaches(
    trace: Trace, warm_up_s: int, programs: Mapping[str, SignalProgram], by_edge: Mapping[str, tuple[int, float]]
) -> dict[str, Any]:
    """Each approach, and the one with the longest wait per vehicle. by_edge: vehicles, and the time lost there."""
    lanes_of: dict[str, list[str]] = {}
    for lane in trace.lanes:
        if not lane.startswith(":"):  # inside a node, which edgeData leaves out
            lanes_of.setdefault(edge_of(lane), []).append(lane)
    # the first that has it
    junction_of = {
        edge_of(lane): name for name, program in reversed(list(programs.items())) for lane in program.approach_lanes
    }
    at_signal = {edge_of(lane) for program in programs.values() for lane in program.incoming_lanes}
    approaches, waits_s = [], {}
    for edge, lanes in lanes_of.items():
        queue_veh = trace.queue_on_veh(lanes)[warm_up_s:]
        vehicles, time_loss_s = by_edge.get(edge, (0, 0.0))
        approaches.append(
            {
                "junction": junction_of[edge],
                "edge": edge,
                "at_signal": edge in at_signal,  # or leads onto such an edge, which is short
                "vehicles": vehicles,
                "time_loss_s": time_loss_s,
                "mean_queue_veh": float(queue_veh.mean()),
                "p95_queue_veh": float(np.percentile(queue_veh, 95)),
            }
        )
        # a queue that the warm-up left behind, and that no other vehicle joins, counts as one vehicle
        if queue_veh.any() or vehicles:
            waits_s[edge] = int(queue_veh.sum()) / max(1, vehicles)
    worst = max(waits_s, key=waits_s.__getitem__, default=None)
    return {
        "worst_approach_wait_s": waits_s[worst] if worst else None,
        "worst_approach": worst,
        "approaches": approaches,
    }
