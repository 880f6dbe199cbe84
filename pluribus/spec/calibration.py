"""Calibration: a few named factors that measured runs of a cluster put on the formulas
(`calibration.json`)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, write_json
from pluribus.core.schema import from_table, to_table

CALIBRATION_VERSION = 1

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

    def __post_init__(self) -> None:
        for name in FACTORS:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}", do="Write a number above zero."
                )

    @property
    def spread(self) -> float | None:
        """Relative half-width that covers 80 % of runs whose factors are known; None before
        calibration. `predict.calibrate.interval` adds what is uncertain about the factors."""
        return math.expm1(1.2816 * self.residual) if self.runs else None


IDENTITY = Calibration()


@dataclass(frozen=True, kw_only=True)
class FittedRun:
    """A measured run and what was predicted of it.

    Attributes:
        name: of its file or folder.
        seconds: measured, of one step.
        before, after: predicted without the factors and with them.
    """

    name: str
    seconds: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What `pluribus calibrate` writes: the factors, and the runs they were fitted to."""

    factors: Calibration
    runs: tuple[FittedRun, ...]
    version: int = CALIBRATION_VERSION

    def __post_init__(self) -> None:
        if self.version != CALIBRATION_VERSION:
            raise ConfigError(
                f"calibration version {self.version} is not {CALIBRATION_VERSION}",
                do="Calibrate again with this version of Pluribus: pluribus calibrate RUNS.",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        write_json(path, to_table(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationRecord:
        """Reads a calibration.json.

        Raises:
            ConfigError: not a calibration of this version.
        """
        return from_table(cls, read_json(path), file=str(path))
