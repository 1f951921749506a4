import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.errors import SampleError
from tsc.junction.observation import LaneGroupObservation, Observation, StageObservation, observe
from tsc.junction.signal_control import SignalControl
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.simulation import Simulation

OBSERVATION = Observation(
    junction_id="J",
    elapsed_green_s=15,
    min_green_s=10,
    max_green_s=60,
    green_extension_s=5,
    stages=tuple(
        StageObservation(
            stage=number,
            queue_veh=1,
            moving_near_veh=2,
            moving_mid_veh=3,
            moving_far_veh=4,
            longest_wait_s=5,
            downstream_space_veh=6,
        )
        for number in range(2)
    ),
)


SHARED = replace(
    OBSERVATION,
    lane_groups=tuple(
        LaneGroupObservation(
            turns=turns,
            queue_veh=1,
            moving_near_veh=0,
            moving_mid_veh=0,
            moving_far_veh=0,
            longest_wait_s=5,
            downstream_space_veh=6,
        )
        for turns in ((0,), (0, 1))
    ),
)


@pytest.mark.parametrize("seen", [OBSERVATION, SHARED], ids=["stages", "lane groups"])
def test_an_observation_is_read_from_what_a_sample_stores(seen: Observation) -> None:
    assert Observation.from_dict(json.loads(json.dumps(seen.as_dict()))) == seen


def test_each_lane_counts_once_by_the_turns_at_which_it_is_served() -> None:
    assert list(OBSERVATION.by_turns) == [(0,), (1,)]
    assert list(SHARED.by_turns) == [(0,), (0, 1)]


def _seen(scenario: TrafficScenario, seed: int) -> list[tuple[Observation, int, list[tuple[int, ...]]]]:
    """Of every 20th second: what is seen, the halting vehicles on all approaches, the stages of the lane groups."""
    control = SignalControl(Simulation(scenario.files(seed)), scenario.timing)
    control.start()
    (junction_id,) = control.programs
    program, found = control.program(junction_id), []
    for second in range(400):
        control.advance({})
        if second % 20 == 19 and control.clocks[junction_id].green:
            queue_veh = control.simulation.queue_veh(program.approach_lanes)
            groups = [group.stages for group in program.lane_groups]
            found.append((observe(control, junction_id), queue_veh, groups))
    return found


def test_lane_groups_hold_every_vehicle_once_and_turn_with_the_stages(tmp_path: Path) -> None:
    (rilsa2,) = traffic_scenarios(["sumo:rilsa2"], tmp_path)
    found = in_new_process(_seen, rilsa2, 1)
    assert {seen.stages[0].stage for seen, *_ in found} == {0, 1, 2} and max(queue for _, queue, _ in found) > 5
    for seen, queue_veh, groups in found:
        assert groups == [(0,), (1,), (1, 2), (2,)]
        assert sum(group.queue_veh for group in seen.lane_groups) == queue_veh
        current = seen.stages[0].stage
        turns = {tuple(sorted((stage - current) % 3 for stage in group)) for group in groups}
        assert [group.turns for group in seen.lane_groups] == sorted(turns)
        # a stage's lanes are those of all groups that it serves
        for turn, stage in enumerate(seen.stages):
            of_stage = [group for group in seen.lane_groups if turn in group.turns]
            assert stage.queue_veh == sum(group.queue_veh for group in of_stage)
            assert stage.longest_wait_s == max(group.longest_wait_s for group in of_stage)


def test_where_each_stage_has_lanes_of_its_own_there_are_no_lane_groups(tmp_path: Path) -> None:
    (four_way,) = traffic_scenarios(["configs/scenarios/four_way.yaml"], tmp_path)
    for seen, *_ in in_new_process(_seen, four_way, 1):
        assert seen.lane_groups == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "observation is not as generate_dataset writes it"),
        ({"queue": 3}, "observation.junction_id is not as"),
        ({**OBSERVATION.as_dict(), "stages": [{"stage": 0}]}, "observation.stages.0.queue_veh is not as"),
        ({**OBSERVATION.as_dict(), "elapsed_green_s": 15.5}, "observation.elapsed_green_s is not as"),
    ],
)
def test_the_observation_of_another_generator_is_refused_with_its_first_fault(values: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        Observation.from_dict(values)
