"""Calibration: a few named factors that measured runs of a cluster put on the formulas
(`calibration.json`)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, write_json
from pluribus.core.schema import from_table, to_table

CALIBRATION_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Factors on predicted seconds; 1 leaves the formulas as they are.

    Attributes:
        matmul: on matrix products.
        attention: on flash attention kernels, which differ by program and generation.
        memory: on everything bound by memory bandwidth.
        host: on the time the host takes to launch a layer.
        intra: on collectives inside a node.
        inter: on collectives and messages between nodes.
        overhead: on the whole step; what is in none of the others.
        spread: relative half-width of an interval that covers 80 % of new runs; None before
            calibration.
    """

    matmul: float = 1.0
    attention: float = 1.0
    memory: float = 1.0
    host: float = 1.0
    intra: float = 1.0
    inter: float = 1.0
    overhead: float = 1.0
    spread: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}", do="Write a number above zero.")


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
