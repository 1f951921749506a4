"""Records what one junction looks like under a controller: vehicles, signals, and what both answers of each decision
lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsc.controllers.language_model import Asked, LanguageModelController
from tsc.cost.continuation import Continuation, continue_with, in_two_forks, outcomes_of
from tsc.cost.outcome import Outcomes, OutcomeSettings, import_measures
from tsc.episodes.trace import Trace
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.sumo.running import Box, RunningSumo
from tsc.sumo.simulation import Simulation

# Positions are stored in steps of 0.1 m from the south-west corner, angles in 256ths of a turn, and speeds in steps of
# 0.2 m/s. Only a halting vehicle (speed < 0.1 m/s) has the speed 0.
POSITION_STEP_M = 0.1
ANGLE_STEP_DEG = 360 / 256
SPEED_STEP_M_PER_S = 0.2
_HALTING_M_PER_S = 0.1


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a net that is recorded. from_s: vehicles and decisions are recorded from here on."""

    junction_id: str
    box: Box
    from_s: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A junction over T seconds. Second t lies between frames t and t + 1.

    Each of the N tracks is one vehicle in consecutive frames, from its first one on. A vehicle that leaves the view and
    comes back has two tracks. The points of all tracks stand one after the other.

    state[t]: the letter of each link. queue_veh[T]: halting vehicles on the approach lanes at the end of each second.
    first_frame[N], num_frames[N]; size_dm[N, 2]: length and width of the vehicle, in 0.1 m.
    position[P, 2], angle[P], speed[P]: in the steps at the top of this module.
    """

    state: tuple[str, ...]
    queue_veh: NDArray[np.uint16]
    first_frame: NDArray[np.uint16]
    num_frames: NDArray[np.uint16]
    size_dm: NDArray[np.uint8]
    position: NDArray[np.int16]
    angle: NDArray[np.uint8]
    speed: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class RecordedDecision:
    """values: those of decision_values. answers: the recording of each answer, which begins at the decision."""

    values: Mapping[str, Any]
    answers: Mapping[Decision, Recording]


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """stage[T]: index of the green stage; -1 between stages. decisions: of the shown junction, in the order of time. A
    controller by which SUMO switches has none."""

    recording: Recording
    stage: NDArray[np.int8]
    decisions: Sequence[RecordedDecision]


@dataclass
class _Track:
    first_frame: int
    size_m: tuple[float, float]
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


class Recorder:
    """Reads a running simulation: at once, and after each second in which `record` is called."""

    def __init__(self, simulation: RunningSumo, junction_id: str, box: Box, lanes: Sequence[str]) -> None:
        """lanes: whose queue is recorded."""
        self._simulation = simulation
        self._junction_id = junction_id
        self._box = box
        self._lanes = lanes
        self._tracks: list[_Track] = []
        self._present: dict[str, _Track] = {}
        self._states: list[str] = []
        self._queue_veh: list[int] = []
        self._read_vehicles(0)

    def record(self) -> None:
        self._states.append(self._simulation.signal_state(self._junction_id))
        self._queue_veh.append(self._simulation.queue_veh(self._lanes))
        self._read_vehicles(len(self._states))

    def _read_vehicles(self, frame: int) -> None:
        before, self._present = self._present, {}
        for name, x_m, y_m, angle_deg, speed_m_per_s in self._simulation.poses(self._box):
            track = before.get(name)
            if track is None:
                track = _Track(first_frame=frame, size_m=self._simulation.size_m(name))
                self._tracks.append(track)
            track.points.append((x_m, y_m, angle_deg, speed_m_per_s))
            self._present[name] = track

    def recording(self) -> Recording:
        points = np.array([point for track in self._tracks for point in track.points], dtype=float).reshape(-1, 4)
        west, south = self._box[:2]
        speed_m_per_s = points[:, 3]
        speed = np.clip(np.round(speed_m_per_s / SPEED_STEP_M_PER_S), 1, 255)
        return Recording(
            state=tuple(self._states),
            queue_veh=np.array(self._queue_veh, dtype=np.uint16),
            first_frame=np.array([track.first_frame for track in self._tracks], dtype=np.uint16),
            num_frames=np.array([len(track.points) for track in self._tracks], dtype=np.uint16),
            size_dm=np.clip(
                np.round(10 * np.array([track.size_m for track in self._tracks]).reshape(-1, 2)), 0, 255
            ).astype(np.uint8),
            position=np.round((points[:, :2] - (west, south)) / POSITION_STEP_M).astype(np.int16),
            angle=(np.round(points[:, 2] / ANGLE_STEP_DEG).astype(np.int64) % 256).astype(np.uint8),
            speed=np.where(speed_m_per_s < _HALTING_M_PER_S, 0, speed).astype(np.uint8),
        )


def decision_values(
    control: SignalControl, junction_id: str, decision: Decision, asked: Asked | None, outcomes: Outcomes
) -> dict[str, Any]:
    """What is kept of a decision, as JSON values. asked: of a language model; without one, its values are None."""
    clock = control.clocks[junction_id]
    reply = asked.reply if asked else None
    return {
        "time_s": control.simulation.time_s,
        "junction_id": junction_id,
        "stage": clock.stage,
        "elapsed_green_s": clock.elapsed_green_s,
        "prompt": asked.prompt if asked else None,
        "answer": reply.text if reply else None,
        "decision": decision.value,
        "fallback": asked.fallback if asked else None,
        "latency_s": reply.latency_s if reply else None,
        "prompt_tokens": reply.prompt_tokens if reply else None,
        "completion_tokens": reply.completion_tokens if reply else None,
        "outcomes": outcomes.as_dict(),
    }


class EpisodeRecorder:
    """Records an episode by run_episode's on_second and on_round. At each decision of the shown junction, both answers
    are continued in forks of the simulation, as lookahead does it, and these are recorded, too."""

    def __init__(self, view: View, settings: OutcomeSettings, model: LanguageModelController | None) -> None:
        """settings: how decisions are judged. model: the controller, if it is a language model."""
        self._view = view
        self._settings = settings
        self._model = model
        self._lanes: tuple[str, ...] = ()
        self._recorder: Recorder | None = None
        self._decisions: list[RecordedDecision] = []

    def on_second(self, simulation: Simulation) -> None:
        if self._recorder is not None:
            self._recorder.record()
        elif simulation.time_s >= self._view.from_s:
            self._lanes = simulation.program(self._view.junction_id).approach_lanes
            self._recorder = self._recorder_of(simulation)

    def _recorder_of(self, simulation: RunningSumo) -> Recorder:
        return Recorder(simulation, self._view.junction_id, self._view.box, self._lanes)

    def on_round(self, control: SignalControl, answers: Mapping[str, Decision]) -> None:
        junction_id, settings = self._view.junction_id, self._settings
        if self._recorder is None or junction_id not in answers:
            return
        import_measures(settings)

        def recorded(decision: Decision) -> tuple[Continuation, Recording]:
            recorder = self._recorder_of(control.simulation)
            continuation = continue_with(control, junction_id, decision, settings, on_second=recorder.record)
            return continuation, recorder.recording()

        both = in_two_forks(recorded)
        outcomes = outcomes_of({decision: each[0] for decision, each in both.items()}, settings)
        last_round = self._model.last_round if self._model else []
        asked = next((each for each in last_round if each.junction_id == junction_id), None)
        self._decisions.append(
            RecordedDecision(
                values=decision_values(control, junction_id, answers[junction_id], asked, outcomes),
                answers={decision: each[1] for decision, each in both.items()},
            )
        )

    def recorded(self, trace: Trace) -> RecordedEpisode:
        """trace: of the same episode."""
        assert self._recorder is not None, "the episode ended before the view begins"
        column = list(trace.programs).index(self._view.junction_id)
        return RecordedEpisode(
            recording=self._recorder.recording(),
            stage=trace.stage[self._view.from_s - trace.begin_s :, column],
            decisions=self._decisions,
        )
