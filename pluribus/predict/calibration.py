"""Calibration: a few named factors that measured runs of a cluster put on the formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Standard deviations of the factors' priors in log space: how far each may plausibly be from 1.
PRIOR: Mapping[str, float] = MappingProxyType({
    "matmul": 0.1,
    "attention": 0.2,
    "experts": 0.2,
    "memory": 0.2,
    "host": 0.3,
    "intra": 0.2,
    "inter": 0.3,
    "overhead": 0.1,
})  # fmt: skip
FACTORS = tuple(PRIOR)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Factors on predicted seconds; 1 leaves the formulas as they are.

    Attributes:
        matmul: on matrix products.
        attention: on flash attention kernels, which differ by program and generation.
        experts: on grouped products and routing, which differ by program and generation.
        memory: on everything bound by memory bandwidth.
        host: on the time the host takes to launch a layer.
        intra: on collectives inside a node.
        inter: on collectives and messages between nodes.
        overhead: on the whole step; what is in none of the others.
        covariance: of the logarithms of the factors, in the order of `FACTORS`; None before
            calibration, when the priors count.
        residual: deviation in log space of a run whose factors are known.
        runs: how many runs the factors come from.
    """

    matmul: float = 1.0
    attention: float = 1.0
    experts: float = 1.0
    memory: float = 1.0
    host: float = 1.0
    intra: float = 1.0
    inter: float = 1.0
    overhead: float = 1.0
    covariance: tuple[tuple[float, ...], ...] | None = None
    residual: float = 0.0
    runs: int = 0

    @property
    def spread(self) -> float | None:
        """Relative half-width that covers 80 % of runs whose factors are known; None before
        calibration. `calibrate.interval` adds what is uncertain about the factors."""
        return math.expm1(1.2816 * self.residual) if self.runs else None


IDENTITY = Calibration()
