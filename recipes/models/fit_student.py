"""Fits the networks of a student (tsc.rules.student). scripts/fit_student.py is the command."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tsc.rules.student import Integers, Layer

if TYPE_CHECKING:
    import torch

    # the weights (networks, outputs, inputs) and biases (networks, outputs, 1) of each layer
    Layers = list[tuple[torch.Tensor, torch.Tensor]]

NUM_NETWORKS = 3
HIDDEN = (64, 32)
SEED = 1
STEPS = 2000
BATCH_SAMPLES = 256
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1.0  # fits less of the noise in labels
# Weights become whole numbers of these fractions. Those of the first layer are small, because inputs are up to 300.
FRACTIONS = (2**16, 2**12, 2**12)


def fit(inputs: Integers, extends: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]) -> Layers:
    """Networks of floats, whose outputs are positive where the green is to be extended.

    inputs: shape (features, samples). extends, weights: shape (samples,): the answers, and how much each matters. The
    same samples give the same networks on the same machine.
    """
    import torch

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(SEED)
    x = torch.tensor(inputs, dtype=torch.float32)
    # A feature that never changes here must not matter elsewhere: nothing was learned about it.
    mean, deviation = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=1.0), 0.0)
    x = (x - mean) * scale
    target = torch.tensor(extends, dtype=torch.float32).expand(NUM_NETWORKS, -1)
    weight = torch.tensor(weights / weights.mean(), dtype=torch.float32)

    layers: Layers = []
    for num_inputs, num_outputs in zip((len(x), *HIDDEN), (*HIDDEN, 1), strict=True):
        bound = 1 / math.sqrt(num_inputs)
        shapes = (NUM_NETWORKS, num_outputs, num_inputs), (NUM_NETWORKS, num_outputs, 1)
        drawn = [torch.empty(shape).uniform_(-bound, bound, generator=random) for shape in shapes]
        layers.append((drawn[0].requires_grad_(), drawn[1].requires_grad_()))
    parameters = [each for layer in layers for each in layer]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(x.shape[1], (BATCH_SAMPLES,), generator=random)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs(layers, x[:, chosen]), target[:, chosen], weight=weight[chosen]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    fitted = [(weights.detach(), biases.detach()) for weights, biases in layers]
    first, biases = fitted[0]
    first = first * scale.T
    return [(first, biases - first @ mean), *fitted[1:]]


def outputs(layers: Layers, inputs: torch.Tensor) -> torch.Tensor:
    """Shape (networks, samples). inputs: shape (features, samples)."""
    import torch

    values = inputs
    for weights, biases in layers[:-1]:
        values = torch.relu(weights @ values + biases)
    weights, biases = layers[-1]
    return (weights @ values + biases).squeeze(1)


def float_margins(layers: Layers, inputs: Integers) -> npt.NDArray[np.float64]:
    """What tsc.rules.student.Student.margins gives, before it is made of integers."""
    import torch

    doubles = [(weights.double(), biases.double()) for weights, biases in layers]
    return np.array(outputs(doubles, torch.tensor(inputs, dtype=torch.float64)).sum(dim=0))


def quantised(layers: Layers) -> list[Layer]:
    """The same networks in integers."""
    whole = []
    fraction_of_sums = 1
    for fraction, (weights, biases) in zip(FRACTIONS, layers, strict=True):
        fraction_of_sums *= fraction
        whole.append(
            Layer(
                weights=(weights.double() * fraction).round().long().tolist(),
                biases=(biases.squeeze(-1).double() * fraction_of_sums).round().long().tolist(),
            )
        )
    return whole
