"""A student: a small network that copies the decisions of a language model, or of the labels.

It takes microseconds, so it can run inside SUMO's loop. All numbers are integers: inputs, weights and sums. The sum of
floats depends on their order, and so on the processor and the BLAS build; a decision near 0 would then differ between
machines, and a replay with it. Sums of integers are exact everywhere, and need no threads of BLAS, which do not survive
a fork.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from tsc.errors import ConfigError
from tsc.junction.decision import Decision
from tsc.junction.observation import Observation, observe
from tsc.junction.signal_control import SignalControl
from tsc.rules.controller import Rule
from tsc.yaml_file import Section, validate_values

FORMAT = "tsc-student"
FORMAT_VERSION = 1
# Raise it with any change of `features`.
FEATURES_VERSION = 2

# the present stage and the next three have inputs of their own
NUM_STAGES = 4
# which of them a lane may lead to
TURNS = tuple(
    turns for length in range(1, NUM_STAGES + 1) for turns in itertools.combinations(range(NUM_STAGES), length)
)
# Longer times and larger counts decide nothing new.
MAX_TIME_S = 300
MAX_VEH = 99

_MAX_OF_LANES = (MAX_VEH, MAX_VEH, MAX_VEH, MAX_VEH)
_MAX_OF_STAGE = (MAX_TIME_S, MAX_VEH)
# the largest value of each feature; the smallest is 0
MAX_FEATURES = (
    *(MAX_TIME_S, MAX_TIME_S, MAX_TIME_S, MAX_VEH),
    *_MAX_OF_LANES * len(TURNS),
    *_MAX_OF_STAGE * NUM_STAGES,
    *(MAX_VEH, MAX_VEH, MAX_TIME_S),
)

Integers = npt.NDArray[np.int64]


def features(observation: Observation) -> tuple[int, ...]:
    """What the network sees of a junction with any number of stages. No value exceeds that of MAX_FEATURES.

    - elapsed, minimum and maximum green (s), number of stages;
    - for each of TURNS, the vehicles on the lanes that lead to these stages: queue, moving near, mid and far. Stages
      after the first NUM_STAGES are left out of a lane's turns;
    - for each of the first NUM_STAGES stages, the longest wait (s) and the space downstream (veh);
    - over all red stages, the sum and the maximum of the queues (veh), and the longest wait (s).

    A stage or a lane that does not exist has zeros.
    """
    stages = observation.stages
    values = [observation.elapsed_green_s, observation.min_green_s, observation.max_green_s, len(stages)]
    counts = dict.fromkeys(TURNS, (0, 0, 0, 0))
    for turns, lanes in observation.by_turns.items():
        known = tuple(turn for turn in turns if turn < NUM_STAGES)
        if known:
            seen = (lanes.queue_veh, lanes.moving_near_veh, lanes.moving_mid_veh, lanes.moving_far_veh)
            counts[known] = tuple(map(operator.add, counts[known], seen))
    for of_lanes in counts.values():
        values += of_lanes
    for stage in stages[:NUM_STAGES]:
        values += (stage.longest_wait_s, stage.downstream_space_veh)
    values += [0] * (len(_MAX_OF_STAGE) * (NUM_STAGES - len(stages)))
    queues_veh = [stage.queue_veh for stage in stages[1:]]
    values += (sum(queues_veh), max(queues_veh, default=0), max((s.longest_wait_s for s in stages[1:]), default=0))
    return tuple(map(min, values, MAX_FEATURES))


class Layer(Section):
    """One layer of all networks, in integers. weights: (networks, outputs, inputs). biases: (networks, outputs)."""

    weights: list[list[list[int]]]
    biases: list[list[int]]


class StudentFile(Section):
    """A student as its file has it.

    teacher: whom it copies: the folder of a model, or "labels". teacher_digest, prompt_version: of a model and of the
    prompts that it was asked; None for labels. agreement: the share of decisions on held-out episodes that are the
    teacher's. layers: of several networks, whose outputs are added up.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    features_version: int = FEATURES_VERSION
    teacher: str
    teacher_digest: str | None
    prompt_version: str | None
    agreement: float = Field(ge=0, le=1)
    layers: list[Layer] = Field(min_length=1)

    @model_validator(mode="after")
    def _layers_fit_together_and_sums_fit_into_64_bits(self) -> StudentFile:
        num_networks = len(self.layers[0].weights)
        # in Python's own integers, which do not overflow
        largest: Any = np.array([[value] for value in MAX_FEATURES], dtype=object)
        for number, layer in enumerate(self.layers):
            try:
                weights, biases = np.array(layer.weights, dtype=object), np.array(layer.biases, dtype=object)
                num_outputs = weights.shape[1]
                fits = weights.shape == (num_networks, num_outputs, largest.shape[-2]) and weights.size > 0
            except (ValueError, IndexError):  # lists of different lengths
                fits = False
            is_last = layer is self.layers[-1]
            if not fits or biases.shape != weights.shape[:2] or (is_last and num_outputs != 1):
                raise ValueError(
                    f"layer {number} does not fit: choose weights of shape (networks, outputs, inputs) and biases of "
                    f"shape (networks, outputs), with {len(MAX_FEATURES)} inputs first and 1 output last"
                )
            largest = np.abs(weights) @ largest + np.abs(biases)[..., None]
        if largest.sum() >= 2**63:
            raise ValueError("the weights are too large: their sums may not fit into 64 bits")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the file."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_student(path: Path) -> StudentFile:
    """Raises ConfigError if `path` is not a student, or one of another version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the student {path}: {error.strerror}") from error
    except ValueError:  # neither text nor JSON
        values = None
    remedy = "make one with scripts/fit_student.py"
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a student: {remedy}")
    for key, known in (("format_version", FORMAT_VERSION), ("features_version", FEATURES_VERSION)):
        if values.get(key) != known:
            raise ConfigError(f"{path}: {key} is {values.get(key)!r}, but this program reads {known}: {remedy}")
    return validate_values(values, StudentFile, where=str(path))


class Student(Rule):
    """Extend if the sum of the networks' outputs is not negative."""

    def __init__(self, file: StudentFile) -> None:
        self._layers = [
            (np.array(layer.weights, dtype=np.int64), np.array(layer.biases, dtype=np.int64)[..., None])
            for layer in file.layers
        ]

    def margins(self, inputs: Integers) -> Integers:
        """The sums of the outputs, one for each sample. inputs: integers of shape (features, samples)."""
        values = inputs
        for weights, biases in self._layers[:-1]:
            values = np.maximum(weights @ values + biases, 0)
        weights, biases = self._layers[-1]
        margins: Integers = (weights @ values + biases).sum(axis=(0, 1))
        return margins

    def decision(self, observation: Observation) -> Decision:
        inputs = np.array(features(observation), dtype=np.int64)
        return Decision.YES if self.margins(inputs[:, None])[0] >= 0 else Decision.NO

    def extends(self, control: SignalControl, junction_id: str) -> bool:
        return self.decision(observe(control, junction_id)) is Decision.YES
