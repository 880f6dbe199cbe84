"""Calibration: a few named factors that measured runs of a cluster put on the formulas."""

from __future__ import annotations

from dataclasses import dataclass


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


IDENTITY = Calibration()
