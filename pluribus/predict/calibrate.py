"""Fits a cluster's factors to a few of its measured runs.

Maximum a posteriori: log-normal priors around 1 keep what the runs do not say, and residuals
that follow a Student-t distribution (Lange, Little, Taylor 1989) keep one bad run from deciding.
What stays uncertain is kept as well: the covariance of the factors (Laplace's approximation) and
the deviation of a run whose factors are known, so that a prediction far from the measured runs
gets the wider interval (`interval`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pluribus.spec.calibration import FACTORS, IDENTITY, PRIOR, Calibration
from pluribus.spec.prediction import Interval

# Deviation expected of a run whose factors are known, and the runs this expectation counts for.
PRIOR_RESIDUAL = 0.06
PRIOR_RUNS = 3

# Degrees of freedom of the residuals' Student-t distribution: far ones hardly count.
FREEDOM = 1.5

# A run left out of its own fit misses by at most this much more than one that was in it.
MOST_LEVERAGE = 0.8

# Two-sided 80 % quantiles of Student's t by degrees of freedom (1, 2, …).
QUANTILES_80 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)

# Deviation of a run of an uncalibrated cluster from what some factors would make of it.
UNCALIBRATED_RESIDUAL = 0.05


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
    """The factors that explain the runs best, and how sure they are.

    Args:
        runs: up to about 8; with none the answer is `start`.
        start: the middle of the priors, such as the factors of like clusters.
        rounds: Gauss-Newton steps, each with new weights.
    """
    if not runs:
        return start
    deviations = np.array([PRIOR[name] for name in FACTORS])
    measured = np.log([run.seconds for run in runs])

    def residuals(logs: np.ndarray) -> np.ndarray:
        factors = _with_logs(start, logs)
        return np.log([run.predict(factors) for run in runs]) - measured

    middle = np.log([getattr(start, name) for name in FACTORS])
    logs = middle
    left = residuals(logs)
    scale = max(PRIOR_RESIDUAL, 1.4826 * float(np.median(np.abs(left - np.median(left)))))
    for _ in range(rounds):
        slopes = _slopes(residuals, logs, left)
        weights = (FREEDOM + 1) / (FREEDOM + (left / scale) ** 2) / scale**2
        precision = (slopes.T * weights) @ slopes + np.diag(deviations**-2)
        gradient = (slopes.T * weights) @ left + (logs - middle) / deviations**2
        logs = logs - np.clip(np.linalg.solve(precision, gradient), -0.3, 0.3)
        left = residuals(logs)
        scale = _scale(left)
    covariance = np.linalg.inv(precision)
    # A run that its own fit was drawn to says too little about the next one.
    leverage = weights * np.einsum("ij,jk,ik->i", slopes, covariance, slopes)
    honest = _scale(left / (1 - np.minimum(leverage, MOST_LEVERAGE)))
    rows = tuple(tuple(row) for row in covariance.tolist())
    found = _with_logs(start, logs)
    return Calibration(
        **{**asdict(found), "covariance": rows, "residual": honest, "runs": len(runs)}
    )


def interval(predict: Callable[[Calibration], float], calibration: Calibration) -> Interval:
    """Seconds with the range that should cover 80 % of new runs.

    The variance in log space is that of a run whose factors are known, plus what the factors'
    own uncertainty makes of this prediction. Few runs say little about either, so the quantile
    is Student's with as many degrees of freedom as there were runs.
    """
    mid = predict(calibration)
    logs = np.log([getattr(calibration, name) for name in FACTORS])

    def seconds(at: np.ndarray) -> np.ndarray:
        return np.log([predict(_with_logs(calibration, at))])

    slopes = _slopes(seconds, logs, np.log([mid]))[0]
    if calibration.covariance is None:
        covariance = np.diag([PRIOR[name] ** 2 for name in FACTORS])
        residual, freedom = UNCALIBRATED_RESIDUAL, len(QUANTILES_80)
    else:
        covariance, residual = np.array(calibration.covariance), calibration.residual
        freedom = calibration.runs + PRIOR_RUNS - 1
    variance = float(slopes @ covariance @ slopes) + residual**2
    quantile = QUANTILES_80[min(freedom, len(QUANTILES_80)) - 1]
    half = math.exp(quantile * math.sqrt(variance))
    return Interval(mid=mid, low=mid / half, high=mid * half)


def _with_logs(calibration: Calibration, logs: np.ndarray) -> Calibration:
    factors = dict(zip(FACTORS, np.exp(logs).tolist(), strict=True))
    return Calibration(**{**asdict(calibration), **factors})


def _slopes(
    function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """Slope of each result along each factor, (results, factors)."""
    step = 1e-3
    return np.stack(
        [(function(at + step * unit) - value) / step for unit in np.eye(len(at))], axis=1
    )


def _scale(left: np.ndarray) -> float:
    """Deviation of the residuals; one outlier counts no more than three typical ones."""
    typical = 1.4826 * float(np.median(np.abs(left)))
    cut = np.minimum(np.abs(left), 3 * max(typical, 1e-3))
    total = float(np.sum(cut**2)) + PRIOR_RUNS * PRIOR_RESIDUAL**2
    return math.sqrt(total / (len(left) + PRIOR_RUNS))
