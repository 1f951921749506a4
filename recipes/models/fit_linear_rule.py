"""Fits the linear rules of a signal program (tsc.programs). scripts/export_program.py is the command."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from tsc.programs.linear_rule import LinearRule

# Weights are whole numbers; the largest of a stage is this, which is finer than the labels are sure.
LARGEST_WEIGHT = 100
# Strength of the pull of standardised weights towards 0. It decides where a count hardly varies.
RIDGE = 1.0


def fit_rule(counts: npt.NDArray[np.float64], extends: npt.NDArray[np.bool_]) -> LinearRule:
    """Logistic regression with a ridge penalty on standardised counts, its weights rounded.

    counts: shape (decisions, features). extends: shape (decisions,). Decisions that are all the same give a rule that
    always takes this one.
    """
    if len(set(extends.tolist())) < 2:
        return LinearRule(weights=(0,) * counts.shape[1], bias=1 if extends.size and extends[0] else -1)
    mean, deviation = counts.mean(axis=0), counts.std(axis=0)
    varies = deviation > 0
    scaled = (counts - mean) / np.where(varies, deviation, 1.0)
    inputs = np.column_stack([scaled, np.ones(len(counts))])
    sign = np.where(extends, 1.0, -1.0)

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margins = sign * (inputs @ values)
        pull = np.append(values[:-1], 0.0)
        gradient = RIDGE * pull - inputs.T @ (sign / (1 + np.exp(np.clip(margins, -500, 500))))
        return float(np.logaddexp(0, -margins).sum() + RIDGE / 2 * pull @ pull), gradient

    found = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    weights = np.where(varies, found[:-1] / np.where(varies, deviation, 1.0), 0.0)
    bias = found[-1] - weights @ mean
    scale = LARGEST_WEIGHT / max(np.abs(weights).max(), 1e-9)
    return LinearRule(
        weights=tuple(int(weight) for weight in (weights * scale).round()), bias=int(np.round(bias * scale))
    )
