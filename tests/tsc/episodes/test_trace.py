"""The trace of an episode, and the greens counted from it."""

import json
from pathlib import Path

import numpy as np

from tests.tsc.sumo_process import in_new_process
from tsc.episodes.episode import run_episode
from tsc.episodes.trace import greens
from tsc.junction.signal_settings import SignalSettings
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.running import SumoFiles


def test_greens_are_counted_by_hand() -> None:
    #        cut off at the begin   whole, 3 s   whole, 2 s   goes on at the end
    stage = np.array([0, 0, -1, 1, 1, 1, -1, 0, 0, -1, 1, 1], dtype=np.int8)
    stages, length_s, num_ended = greens(stage, 0)
    assert length_s.tolist() == [3, 2] and stages.tolist() == [1, 0] and num_ended == 3
    stages, length_s, num_ended = greens(stage, 4)
    assert length_s.tolist() == [2] and stages.tolist() == [0]  # the 3 s green had begun before
    assert num_ended == 2


def test_a_stage_that_follows_another_without_yellow_is_a_green_of_its_own() -> None:
    stages, length_s, _ = greens(np.array([1, 0, 0, 1, 1, 1, 0], dtype=np.int8), 0)
    assert (stages.tolist(), length_s.tolist()) == ([0, 1], [2, 3])


def _write_trace(files: SumoFiles, path: Path) -> float:
    episode = run_episode(files, end_s=120, settings=SignalSettings(), controller=MaxPressure())
    episode.trace.write(path)
    return float(episode.metrics["mean_queue_veh"])


def test_the_file_holds_every_second(files: SumoFiles, tmp_path: Path) -> None:
    path = tmp_path / "traces" / "x.npz"
    mean_queue_veh = in_new_process(_write_trace, files, path)
    with np.load(path) as trace:
        assert trace["halting_veh"].shape == (120, len(trace["lanes"]))
        assert trace["halting_veh"].sum() / 120 == mean_queue_veh > 0
        assert trace["stage"].shape == (120, 1) and set(np.unique(trace["stage"])) == {-1, 0, 1}
        assert (np.diff(trace["arrived_veh"].astype(int)) >= 0).all() and trace["arrived_veh"][-1] > 0
        programs = json.loads(str(trace["programs"]))
        assert {lane for stage in programs["A0"]["stages"] for lane in stage} == set(trace["lanes"])
    first = path.read_bytes()
    in_new_process(_write_trace, files, path)
    assert path.read_bytes() == first
