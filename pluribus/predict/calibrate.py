"""Fits a cluster's factors to a few of its measured runs.

Maximum a posteriori: log-normal priors around 1 keep what the runs do not say, and residuals
that follow a Student-t distribution (Lange, Little, Taylor 1989) keep one bad run from deciding.
The interval comes from the residuals, widened for the few runs there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pluribus.spec.calibration import IDENTITY, Calibration

# Standard deviations of the priors in log space: how far each factor may plausibly be from 1.
PRIOR: dict[str, float] = {
    "matmul": 0.15,
    "attention": 0.3,
    "memory": 0.2,
    "host": 0.3,
    "intra": 0.2,
    "inter": 0.3,
    "overhead": 0.15,
}

# Residuals expected after a good fit, and the number of runs this expectation counts for.
PRIOR_RESIDUAL = 0.05
PRIOR_RUNS = 3

# Degrees of freedom of the residuals' Student-t distribution: far ones hardly count.
FREEDOM = 1.5

# Two-sided 80 % quantile of a normal distribution.
QUANTILE_80 = 1.2816


@dataclass(frozen=True)
class MeasuredRun:
    """A run of the cluster.

    Attributes:
        predict: seconds of the run under a calibration.
        seconds: what it took.
    """

    predict: Callable[[Calibration], float]
    seconds: float


def calibrate(
    runs: Sequence[MeasuredRun], start: Calibration = IDENTITY, rounds: int = 12
) -> Calibration:
    """The factors that explain the runs best, with the spread to expect of new ones.

    Args:
        runs: up to about 8; with none the answer is `start`.
        start: the middle of the priors, such as the factors of like clusters.
        rounds: Gauss-Newton steps, each with new weights.
    """
    if not runs:
        return start
    names = list(PRIOR)
    deviations = np.array([PRIOR[name] for name in names])
    measured = np.log([run.seconds for run in runs])

    def residuals(logs: np.ndarray) -> np.ndarray:
        factors = Calibration(**dict(zip(names, np.exp(logs).tolist(), strict=True)))
        return np.log([run.predict(factors) for run in runs]) - measured

    middle = np.log([getattr(start, name) for name in names])
    logs = middle
    left = residuals(logs)
    scale = max(PRIOR_RESIDUAL, 1.4826 * float(np.median(np.abs(left - np.median(left)))))
    step = 1e-3
    for _ in range(rounds):
        slopes = np.stack(
            [(residuals(logs + step * unit) - left) / step for unit in np.eye(len(names))], axis=1
        )
        weights = (FREEDOM + 1) / (FREEDOM + (left / scale) ** 2) / scale**2
        precision = (slopes.T * weights) @ slopes + np.diag(deviations**-2)
        gradient = (slopes.T * weights) @ left + (logs - middle) / deviations**2
        logs = logs - np.clip(np.linalg.solve(precision, gradient), -0.3, 0.3)
        left = residuals(logs)
        scale = _scale(left)
    # How much of a new run's error is that the factors themselves are not certain.
    posterior = np.linalg.inv(precision)
    of_factors = float(np.mean(np.einsum("ij,jk,ik->i", slopes, posterior, slopes)))
    spread = math.expm1(QUANTILE_80 * math.sqrt(scale**2 + of_factors))
    factors = dict(zip(names, np.exp(logs).tolist(), strict=True))
    return Calibration(**{**asdict(start), **factors, "spread": spread})


def _scale(left: np.ndarray) -> float:
    """Deviation of the residuals; one outlier counts no more than three typical ones."""
    typical = 1.4826 * float(np.median(np.abs(left)))
    cut = np.minimum(np.abs(left), 3 * max(typical, 1e-3))
    total = float(np.sum(cut**2)) + PRIOR_RUNS * PRIOR_RESIDUAL**2
    return math.sqrt(total / (len(left) + PRIOR_RUNS))
