import json
from typing import Any

import pytest

from tsc.errors import SampleError
from tsc.junction.observation import Observation, StageObservation

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


def test_an_observation_is_read_from_what_a_sample_stores() -> None:
    assert Observation.from_dict(json.loads(json.dumps(OBSERVATION.as_dict()))) == OBSERVATION


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
