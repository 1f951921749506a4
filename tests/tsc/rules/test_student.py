import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hand_made_student import write_longest_queue_student
from tests.tsc.sumo_process import in_new_process
from tsc.controllers.registry import rule_controller
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.observation import LaneGroupObservation, Observation, StageObservation
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.controller import Controller
from tsc.rules.student import MAX_FEATURES, TURNS, Layer, Student, StudentFile, features, load_student
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation


def observation(*stages: tuple[int, int, int, int, int, int], max_green_s: int = 60) -> Observation:
    """stages: queue, near, mid, far, wait, space of each."""
    return Observation(
        junction_id="J",
        elapsed_green_s=15,
        min_green_s=10,
        max_green_s=max_green_s,
        green_extension_s=5,
        stages=tuple(
            StageObservation(
                stage=number,
                queue_veh=queue,
                moving_near_veh=near,
                moving_mid_veh=mid,
                moving_far_veh=far,
                longest_wait_s=wait,
                downstream_space_veh=space,
            )
            for number, (queue, near, mid, far, wait, space) in enumerate(stages)
        ),
    )


def at(found: tuple[int, ...], turns: tuple[int, ...]) -> tuple[int, ...]:
    """The queue and the moving vehicles of the lanes that lead to these stages."""
    begin = 4 + 4 * TURNS.index(turns)
    return found[begin : begin + 4]


def test_stages_that_do_not_exist_are_zeros() -> None:
    found = features(observation((1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12)))
    assert found[:4] == (15, 10, 60, 2)
    assert (at(found, (0,)), at(found, (1,))) == ((1, 2, 3, 4), (7, 8, 9, 10))
    assert all(at(found, turns) == (0, 0, 0, 0) for turns in TURNS[2:])
    assert found[-11:] == (5, 6, 11, 12, 0, 0, 0, 0, 7, 7, 11)
    assert len(found) == len(MAX_FEATURES)


def test_lanes_of_several_stages_have_features_of_their_own() -> None:
    groups = tuple(
        LaneGroupObservation(
            turns=turns,
            queue_veh=number,
            moving_near_veh=10 + number,
            moving_mid_veh=20 + number,
            moving_far_veh=30 + number,
            longest_wait_s=0,
            downstream_space_veh=0,
        )
        for number, turns in enumerate([(0,), (0, 2), (1, 4), (1, 5), (4,)])
    )
    found = features(replace(observation(*[(9, 9, 9, 9, 9, 9)] * 6), lane_groups=groups))
    assert (at(found, (0,)), at(found, (0, 2))) == ((0, 10, 20, 30), (1, 11, 21, 31))
    # what later stages share with the first four is added up; what only later stages have is in the sums
    assert at(found, (1,)) == (2 + 3, 12 + 13, 22 + 23, 32 + 33)
    assert sum(map(sum, (at(found, turns) for turns in TURNS))) == 60 + 64 + (5 + 25 + 45 + 65)


def test_all_red_stages_are_in_the_sums_also_those_without_features_of_their_own() -> None:
    stages = [(queue, 0, 0, 0, 10 * queue, 0) for queue in (9, 1, 2, 3, 5)]
    found = features(observation(*stages))
    assert found[:4] == (15, 10, 60, 5)
    assert [at(found, (turn,))[0] for turn in range(4)] == [9, 1, 2, 3]
    assert found[-3:] == (1 + 2 + 3 + 5, 5, 50)


def test_a_huge_value_is_cut() -> None:
    found = features(observation(*[(10**6,) * 6] * 5, max_green_s=86_400))
    assert max(found) == 300 and found[2:8] == (300, 5, 99, 99, 99, 99) and found[-4:] == (99, 99, 99, 300)


def random_file(seed: int) -> StudentFile:
    """Three networks with weights so large that their sums do not fit into the 53 bits of a float."""
    draw = random.Random(seed)

    def numbers(count: int, size: int) -> list[int]:
        return [draw.randint(-size // 3, size) for _ in range(count)]

    def layer(num_outputs: int, num_inputs: int) -> Layer:
        return Layer(
            weights=[[numbers(num_inputs, 15_000) for _ in range(num_outputs)] for _ in range(3)],
            biases=[numbers(num_outputs, 10**6) for _ in range(3)],
        )

    return StudentFile(
        teacher="labels",
        teacher_digest=None,
        prompt_version=None,
        agreement=0.5,
        layers=[layer(16, len(MAX_FEATURES)), layer(8, 16), layer(1, 8)],
    )


def plain_margin(file: StudentFile, inputs: tuple[int, ...]) -> int:
    """The sum of the outputs in Python's own integers."""
    total = 0
    for network in range(len(file.layers[0].weights)):
        values = list(inputs)
        for number, layer in enumerate(file.layers):
            rows = zip(layer.weights[network], layer.biases[network], strict=True)
            values = [sum(w * v for w, v in zip(row, values, strict=True)) + bias for row, bias in rows]
            if number < len(file.layers) - 1:
                values = [max(0, value) for value in values]
        total += values[0]
    return total


def margins(file: StudentFile, inputs: list[tuple[int, ...]]) -> list[int]:
    return [int(margin) for margin in Student(file).margins(np.array(inputs, dtype=np.int64).T)]


def test_a_decision_is_exact_alone_in_a_batch_and_in_a_forked_process() -> None:
    draw = random.Random(1)
    inputs = [tuple(draw.randint(0, largest) for largest in MAX_FEATURES) for _ in range(50)]
    file = random_file(seed=1)
    expected = [plain_margin(file, each) for each in inputs]
    assert max(map(abs, expected)) > 2**53
    assert margins(file, inputs) == expected
    assert [margins(file, [each])[0] for each in inputs] == expected
    assert in_new_process(margins, file, inputs) == expected


def _decisions(files: SumoFiles, make: Callable[..., Controller], *arguments: Any) -> list[tuple[float, Decision]]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    controller = make(*arguments)
    decisions = []
    for _ in range(300):
        due = control.due_junctions()
        answers = controller.decide(control, due) if due else {}
        decisions += [(control.simulation.time_s, answer) for answer in answers.values()]
        control.advance(answers)
    return decisions


def _student(path: Path) -> Controller:
    return Student(load_student(path))


def _longest_queue() -> Controller:
    return rule_controller("longest_queue", seed=1, lookahead=OutcomeSettings())


def test_a_student_that_compares_queues_runs_the_signals_as_the_rule_that_does(
    files: SumoFiles, tmp_path: Path
) -> None:
    """It extends on a tie, where its margin is 0."""
    student = in_new_process(_decisions, files, _student, write_longest_queue_student(tmp_path / "s.json"))
    assert student == in_new_process(_decisions, files, _longest_queue)
    assert len(student) > 20 and {decision for _, decision in student} == set(Decision)


def test_a_file_keeps_the_student_and_its_digest(tmp_path: Path) -> None:
    file = random_file(seed=2)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(file.model_dump(), indent=1))
    assert load_student(path) == file
    assert load_student(path).digest == file.digest != random_file(seed=3).digest


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    values = random_file(seed=1).model_dump()
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\x00", "is not a student: make one with scripts/fit_student.py"),
        ("[]", "is not a student"),
        ('{"format": "other"}', "is not a student"),
        (broken(lambda v: v.update(format_version=2)), "format_version is 2, but this program reads 1"),
        (broken(lambda v: v.update(features_version=0)), "features_version is 0, but this program reads 2"),
        (broken(lambda v: v.update(agreement=1.5)), "agreement is 1.5"),
        (broken(lambda v: v.pop("teacher")), "key 'teacher' is missing"),
        (broken(lambda v: v["layers"].clear()), "layers"),
        (broken(lambda v: v["layers"].pop(0)), r"layer 0 does not fit: .* with 75 inputs first"),
        (broken(lambda v: v["layers"].pop()), "layer 1 does not fit: .* 1 output last"),
        (broken(lambda v: v["layers"][1]["weights"][0].pop()), "layer 1 does not fit"),
        (broken(lambda v: v["layers"][1]["weights"].clear()), "layer 1 does not fit"),
        (broken(lambda v: v["layers"][0]["biases"][2].append(1)), "layer 0 does not fit"),
        (broken(lambda v: v["layers"][2]["weights"][0][0].__setitem__(0, 0.5)), "valid integer"),
        (broken(lambda v: v["layers"][2]["weights"][0][0].__setitem__(0, 2**45)), "may not fit into 64 bits"),
        (broken(lambda v: v["layers"][2]["weights"][0][0].__setitem__(0, 2**70)), "may not fit into 64 bits"),
    ],
)
def test_what_is_not_a_student_of_this_version_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_student(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the student .*none.json: No such file"):
        load_student(tmp_path / "none.json")
