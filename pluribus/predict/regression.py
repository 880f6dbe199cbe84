"""Values between measured points: ordinary kriging over the nearest of them.

Kernel times follow no polynomial of their shape, but what a formula leaves over (the logarithm
of measured ÷ formula) changes slowly along the logarithm of each dimension. Between points it is
interpolated as a Gaussian process with an exponential covariance (Rasmussen & Williams 2006,
§4.2.1, Ornstein-Uhlenbeck): in one dimension that is a straight line between neighbours, which
never overshoots them; far from all points it becomes their mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Chosen on the A100, H100 and Arc B60 matrix-product tables of aiconfigurator-core 0.12.0 with a
# fifth of the (n, k) pairs held out: 8 to 48 neighbours, lengths of 4 to 16 doublings and nuggets
# of 0.001 to 0.01 are all within 0.5 points of one another.
NEIGHBOURS = 24
LENGTH = 8.0
NUGGET = 0.01


class Estimate(NamedTuple):
    """An interpolated value and its standard deviation."""

    value: float
    sigma: float


class LocalRegression:
    """Interpolates scattered values.

    Args:
        points: (N, D) coordinates, in doublings (log2) of each dimension.
        values: (N,) to interpolate.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray) -> None:
        assert len(points) == len(values) > 0, "nothing to interpolate"
        self._points = np.asarray(points, dtype=float)
        self._values = np.asarray(values, dtype=float)

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """Indices of the points an estimate at ``point`` is made from."""
        distance = ((self._points - point) ** 2).sum(axis=1)
        if len(distance) <= NEIGHBOURS:
            return np.arange(len(distance))
        return np.argpartition(distance, NEIGHBOURS)[:NEIGHBOURS]

    def __call__(self, point: np.ndarray) -> Estimate:
        """The value at a point.

        Notes:
            Ordinary kriging (Cressie 1993, §3.2): weights w and multiplier μ solve
            [C 1; 1ᵀ 0] [w; μ] = [c; 1], and the variance is s² (1 + nugget − c·w − μ), where s²
            is the likeliest variance of the neighbours' values around their mean.
        """
        near = self.nearest(point)
        points, values = self._points[near], self._values[near]
        if len(near) == 1:
            return Estimate(float(values[0]), 0.0)
        between = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
        count = len(near)
        system = np.zeros((count + 1, count + 1))
        system[:count, :count] = np.exp(-between / LENGTH)
        system[np.arange(count), np.arange(count)] += NUGGET
        system[count, :count] = system[:count, count] = 1.0
        target = np.ones(count + 1)
        target[:count] = np.exp(-np.sqrt(((points - point) ** 2).sum(axis=1)) / LENGTH)
        rest = np.zeros(count + 1)
        rest[:count] = values
        weights, explained = np.linalg.solve(system, np.stack([target, rest], axis=1)).T
        variance = max(0.0, float(values @ explained[:count])) / (count - 1)
        share = max(0.0, float(1 + NUGGET - target @ weights))
        return Estimate(float(weights[:count] @ values), float(np.sqrt(variance * share)))
