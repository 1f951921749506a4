from collections.abc import Mapping

import pytest

from tsc.programs.detectors import place_detectors
from tsc.sumo.signal_program import ApproachLane, SignalProgram, Stage


def stage(*approach: tuple[str, float]) -> Stage:
    return Stage(
        phase_indices=(0,),
        duration_s=20,
        incoming_lanes=(approach[0][0],),
        outgoing_lanes=(),
        approach=tuple(ApproachLane(lane=lane, distance_m=distance_m) for lane, distance_m in approach),
    )


def program(*stages: Stage) -> SignalProgram:
    return SignalProgram(
        junction_id="J",
        program_id="0",
        type="static",
        stages=stages,
        incoming_lanes=(),
        lanes_downstream={},
        approach_lanes=(),
    )


def test_a_lane_is_cut_by_distance_to_the_stop_line() -> None:
    placed = place_detectors(program(stage(("long", 0.0))), {"long": 180.0}.__getitem__, "d")
    assert [(each.name, each.begin_m, each.end_m) for each in placed.detectors] == [
        ("d_0", 130.0, 180.0),
        ("d_1", 80.0, 130.0),
        ("d_2", 0.0, 80.0),
    ]
    assert placed.counts == ({"near": ("d_0",), "mid": ("d_1",), "far": ("d_2",)},)


def test_short_lanes_are_continued_upstream_and_shared_lanes_are_a_group_of_their_own() -> None:
    lengths: Mapping[str, float] = {"stop": 30.0, "before": 60.0, "other": 99.5}
    shared = program(stage(("stop", 0.0), ("before", 30.0)), stage(("other", 0.0), ("stop", 0.0)))
    placed = place_detectors(shared, lengths.__getitem__, "d")
    assert [(each.lane, each.begin_m, each.end_m) for each in placed.detectors] == [
        ("before", 40.0, 60.0),  # 30 to 50 m before the stop line
        ("before", 0.0, 40.0),
        ("stop", 0.0, 30.0),
        ("other", 49.5, 99.5),
        ("other", 0.0, 49.5),
    ]
    # the first stage's alone, both stages', the second's alone
    assert placed.counts == (
        {"near": ("d_0",), "mid": ("d_1",), "far": ()},
        {"near": ("d_2",), "mid": (), "far": ()},
        {"near": ("d_3",), "mid": ("d_4",), "far": ()},
    )
    vehicles = {"d_0": 1, "d_1": 2, "d_2": 3, "d_3": 4, "d_4": 5}
    assert dict(zip(placed.feature_names, placed.features(vehicles.__getitem__), strict=True)) == {
        "near_0": 1, "mid_0": 2, "far_0": 0, "near_1": 3, "mid_1": 0, "far_1": 0, "near_2": 4, "mid_2": 5, "far_2": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("length_m", "number"), [(50.5, 1), (51.5, 2)])
def test_a_piece_too_short_for_a_detector_gets_none(length_m: float, number: int) -> None:
    placed = place_detectors(program(stage(("lane", 0.0))), lambda lane: length_m, "d")
    assert len(placed.detectors) == number
