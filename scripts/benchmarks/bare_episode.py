"""An episode stepped with libsumo alone: the same traffic, reads and output files, but without decisions and metrics.

The signals and the decision points come from an episode that was recorded before. It runs in its own process, because
libsumo has one simulation per process.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.sax.saxutils import quoteattr

from benchmarks.stopwatch import Cost, cost_of
from tsc.controllers.registry import CONTROLLERS, rule_controller
from tsc.controllers.signal_plans import plan_signals
from tsc.episodes.episode import run_episode
from tsc.episodes.runner import EpisodeJob
from tsc.errors import ReplayError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Controller
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import libsumo


@dataclass(frozen=True, kw_only=True)
class Script:
    """The script of a bare episode, in seconds after its begin. The reads and states of a second precede its step.

    states: by second, the signals that change, as (junction, state).
    reads: by second, the values that the rule needs, as (kind, lane).
    queue_veh_s: the queue over all lanes and seconds, to check that the traffic is the recorded one.
    """

    files: SumoFiles
    duration_s: int
    lanes: tuple[str, ...]
    junction_ids: tuple[str, ...]
    states: Mapping[int, Sequence[tuple[str, str]]]
    reads: Mapping[int, Sequence[tuple[str, str]]]
    queue_veh_s: int


@dataclass
class _Noting:
    """A controller that notes which values a rule needs at each decision point."""

    controller: Controller
    kind: str
    reads: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        second = round(control.simulation.time_s - control.simulation.files.begin_s)
        reads = self.reads.setdefault(second, [])
        for name in junction_ids:
            stages = control.program(name).stages
            match self.kind:
                case "max_pressure":
                    for stage in stages:
                        reads += [("vehicles", lane) for lane in (*stage.approach_lanes, *stage.outgoing_lanes)]
                case "longest_queue":
                    reads += [("halting", lane) for stage in stages for lane in stage.approach_lanes]
                case "gap_out":
                    reads += [("positions", lane) for lane in stages[control.clocks[name].stage].approach_lanes]
        return self.controller.decide(control, junction_ids)


def record_script(job: EpisodeJob, folder: Path) -> Script:
    """Run the episode once and record its script. `folder` keeps the files that the script needs."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = plan_signals(job.kind, job.files, job.signals, job.end_s, folder)
    files = planned.files
    if CONTROLLERS[job.kind].by_sumo:
        noting, signals = None, {}
        recorded = files
    else:
        noting = _Noting(rule_controller(job.kind, seed=job.seed, lookahead=job.lookahead), job.kind)
        signals = {name: folder / f"signals{number}.xml" for number, name in enumerate(planned.plans)}
        recorded = replace(files, additional_files=(*files.additional_files, _saving(signals, folder)))
    trace = run_episode(recorded, end_s=job.end_s, settings=job.signals, controller=noting).trace
    states: dict[int, list[tuple[str, str]]] = {}
    for name, path in signals.items():
        before = ""
        for element in ElementTree.parse(path).iter("tlsState"):
            state = element.attrib["state"]
            if state != before:
                second = round(float(element.attrib["time"]) - files.begin_s)
                states.setdefault(second, []).append((name, state))
            before = state
    return Script(
        files=files,
        duration_s=job.end_s - int(files.begin_s),
        lanes=trace.lanes,
        junction_ids=tuple(trace.programs),
        states=states,
        reads=noting.reads if noting else {},
        queue_veh_s=int(trace.queue_veh.sum()),
    )


def _saving(signals: Mapping[str, Path], folder: Path) -> Path:
    """An additional file that makes SUMO write its signal states to files."""
    events = "".join(
        f'<timedEvent type="SaveTLSStates" source={quoteattr(name)} dest={quoteattr(str(path))}/>'
        for name, path in signals.items()
    )
    path = folder / "signals.add.xml"
    path.write_text(f"<additional>{events}</additional>")
    return path


def bare_cost(script: Script) -> Cost:
    """The cost from SUMO's start to its end, per simulated second. Raises ReplayError if the traffic differs."""
    found: list[int] = []
    cost = cost_of(lambda: found.append(_run(script)), script.duration_s)
    (queue_veh_s,) = found
    if queue_veh_s != script.queue_veh_s:
        raise ReplayError(
            f"the bare episode has a queue of {queue_veh_s} veh·s, but the recorded one has {script.queue_veh_s} veh·s"
        )
    return cost


def _run(script: Script) -> int:
    """Run the script and return the queue over all lanes and seconds."""
    lane, vehicle, light, simulation = libsumo.lane, libsumo.vehicle, libsumo.trafficlight, libsumo.simulation
    reads = {
        "vehicles": lane.getLastStepVehicleNumber,
        "halting": lane.getLastStepHaltingNumber,
        "positions": lambda name: [vehicle.getLanePosition(each) for each in lane.getLastStepVehicleIDs(name)],
    }
    halting_veh: list[int] = []
    phases: list[int] = []
    arrived_veh: list[int] = []
    teleports = 0
    with tempfile.TemporaryDirectory(prefix="tsc-bare-") as folder:
        edges = Path(folder, "edges.add.xml")
        edges.write_text(
            f'<additional><edgeData id="edges" file="{folder}/edges.xml" withInternal="false" excludeEmpty="true" '
            'writeAttributes="entered departed"/></additional>'
        )
        files = replace(script.files, additional_files=(*script.files.additional_files, edges))
        options = [*files.options(), "--no-step-log", "--no-warnings", "--duration-log.disable"]
        options += ["--tripinfo-output", f"{folder}/trips.xml", "--device.emissions.probability", "1"]
        options += ["--tripinfo-output.write-unfinished", "--tripinfo-output.write-undeparted"]
        if libsumo.isLoaded():
            libsumo.load(options)
        else:
            libsumo.start(["sumo", *options])
        for second in range(script.duration_s):
            for kind, name in script.reads.get(second, ()):
                reads[kind](name)
            for name, state in script.states.get(second, ()):
                light.setRedYellowGreenState(name, state)
            libsumo.simulationStep()
            halting_veh += [lane.getLastStepHaltingNumber(name) for name in script.lanes]
            phases += [light.getPhase(name) for name in script.junction_ids]
            arrived_veh.append(simulation.getArrivedNumber())
            teleports += simulation.getStartingTeleportNumber()
        libsumo.close()
    return sum(halting_veh)
