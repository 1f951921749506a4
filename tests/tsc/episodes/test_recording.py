"""A recorded episode: what SUMO shows in every second, and both answers of every decision as they are judged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.language_model import Reply
from tsc.cost.continuation import outcomes_by_fork
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.recording import (
    ANGLE_STEP_DEG,
    POSITION_STEP_M,
    SPEED_STEP_M_PER_S,
    RecordedEpisode,
    Recording,
    View,
)
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.running import Pose, SumoFiles
from tsc.sumo.simulation import Simulation

END_S, FROM_S = 200, 50
EVERYWHERE = (-1000.0, -1000.0, 1000.0, 1000.0)
JUDGED = OutcomeSettings(horizon_s=20)


def recorded(files: SumoFiles, kind: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "scenario": "four_way",
        "controller": kind,
        "kind": kind,
        "seed": 1,
        "fingerprint": "",
        "files": files,
        "end_s": END_S,
        "warm_up_s": FROM_S,
        "signals": SignalSettings(),
        "lookahead": JUDGED,
        "view": View(junction_id="A0", box=EVERYWHERE, from_s=FROM_S),
    }
    (record,) = run_jobs([EpisodeJob(**{**values, **changes})], 1, lambda chats: [Reply("perhaps", 0.1)] * len(chats))
    return record


@pytest.fixture(scope="module")
def under_max_pressure(files: SumoFiles) -> dict[str, Any]:
    return recorded(files, "max_pressure")


def in_frame(recording: Recording, frame: int) -> NDArray[Any]:
    """x, y (m), angle (degrees), speed (m/s) and length (m) of the vehicles in a frame, sorted."""
    begins = np.cumsum(recording.num_frames, dtype=int) - recording.num_frames
    first, last = recording.first_frame, recording.first_frame + recording.num_frames.astype(int) - 1
    tracks = np.flatnonzero((first <= frame) & (frame <= last))
    points = begins[tracks] + frame - first[tracks]
    rows = np.column_stack(
        [
            recording.position[points] * POSITION_STEP_M + EVERYWHERE[:2],
            recording.angle[points] * ANGLE_STEP_DEG,
            recording.speed[points] * SPEED_STEP_M_PER_S,
            recording.size_dm[tracks, 0] / 10,
        ]
    )
    return rows[np.lexsort(rows[:, 1::-1].T)]


def _seen_by_sumo(files: SumoFiles) -> list[tuple[list[Pose], str, int]]:
    """Vehicles, signals and queue after each second under max-pressure, read in a simulation of its own."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    seen = []
    for _ in range(END_S):
        due = control.due_junctions()
        control.advance(MaxPressure().decide(control, due))
        simulation = control.simulation
        queue_veh = simulation.queue_veh(control.incoming_lanes())
        seen.append((simulation.poses(EVERYWHERE), simulation.signal_state("A0"), queue_veh))
    return seen


def test_every_second_is_as_sumo_shows_it(files: SumoFiles, under_max_pressure: Mapping[str, Any]) -> None:
    recording = under_max_pressure["recorded"].recording
    seen = in_new_process(_seen_by_sumo, files)[FROM_S - 1 :]
    assert recording.state == tuple(state for _, state, _ in seen[1:])
    assert recording.queue_veh.tolist() == [queue_veh for *_, queue_veh in seen[1:]]
    for frame, (poses, _, _) in enumerate(seen):
        rows = in_frame(recording, frame)
        assert len(rows) == len(poses)
        if not poses:
            continue
        sumo = np.array([pose[1:] for pose in poses])
        for x_m, y_m, angle_deg, speed_m_per_s in sumo:
            row = rows[np.hypot(rows[:, 0] - x_m, rows[:, 1] - y_m).argmin()]
            assert row[:2] == pytest.approx([x_m, y_m], abs=POSITION_STEP_M)
            assert abs((row[2] - angle_deg + 180) % 360 - 180) <= ANGLE_STEP_DEG
            assert row[3] == pytest.approx(speed_m_per_s, abs=SPEED_STEP_M_PER_S)
            assert (row[3] == 0) == (speed_m_per_s < 0.1)
    assert max(len(poses) for poses, _, _ in seen) > 10


def test_recording_does_not_disturb_the_episode(files: SumoFiles, under_max_pressure: Mapping[str, Any]) -> None:
    alone = recorded(files, "max_pressure", view=None)
    for record in (alone, under_max_pressure):
        assert record["mean_queue_veh"] == alone["mean_queue_veh"] and record["delay_s"] == alone["delay_s"]
    assert under_max_pressure["mean_queue_veh"] == under_max_pressure["recorded"].recording.queue_veh.mean()


def _outcomes_of_lookahead(files: SumoFiles) -> dict[float, dict[str, Any]]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    found = {}
    for _ in range(END_S):
        due = control.due_junctions()
        if due and control.simulation.time_s >= FROM_S:
            found[control.simulation.time_s] = outcomes_by_fork(control, "A0", JUDGED).as_dict()
        control.advance(MaxPressure().decide(control, due))
    return found


def test_both_answers_cost_what_lookahead_finds_and_the_costs_are_the_recorded_queues(
    files: SumoFiles, under_max_pressure: Mapping[str, Any]
) -> None:
    decisions = under_max_pressure["recorded"].decisions
    costs = {each.values["time_s"]: each.values["outcomes"] for each in decisions}
    assert costs == in_new_process(_outcomes_of_lookahead, files)
    assert any(cost["yes"] != cost["no"] for cost in costs.values())
    for each in decisions:
        for answer in Decision:
            assert each.answers[answer].queue_veh.sum() == each.values["outcomes"][answer.value]
            assert len(each.answers[answer].state) == JUDGED.horizon_s


def test_an_answer_begins_with_the_traffic_of_the_decision(under_max_pressure: Mapping[str, Any]) -> None:
    episode: RecordedEpisode = under_max_pressure["recorded"]
    for each in episode.decisions:
        now = in_frame(episode.recording, int(each.values["time_s"]) - FROM_S)
        for answer in Decision:
            assert in_frame(each.answers[answer], 0).tolist() == now.tolist()


def test_a_vehicle_that_leaves_the_view_is_not_recorded(files: SumoFiles, tmp_path: Path) -> None:
    whole = recorded(files, "static")["recorded"]
    x_m, y_m = in_frame(whole.recording, 100)[:, :2].mean(axis=0)
    box = (x_m - 60.0, y_m - 60.0, x_m + 60.0, y_m + 60.0)
    part = recorded(files, "static", view=View(junction_id="A0", box=box, from_s=FROM_S))["recorded"]
    rows = in_frame(whole.recording, 100)
    inside = (np.abs(rows[:, 0] - x_m) < 60) & (np.abs(rows[:, 1] - y_m) < 60)
    positions = in_frame(part.recording, 100)[:, :2] - EVERYWHERE[:2] + box[:2]
    assert 0 < len(positions) == inside.sum() < len(rows)
    assert positions == pytest.approx(rows[inside][:, :2], abs=2 * POSITION_STEP_M)
    assert whole.decisions == [] and set(whole.stage.tolist()) == {-1, 0, 1}


def test_a_language_model_s_prompt_and_answer_are_kept(files: SumoFiles) -> None:
    decisions = recorded(files, "llm")["recorded"].decisions
    assert len(decisions) > 5
    for each in decisions:
        assert each.values["prompt"][-1]["role"] == "user" and each.values["answer"] == "perhaps"
        assert each.values["fallback"] == "invalid"
