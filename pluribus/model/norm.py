"""Parameter counts of normalisations."""

from __future__ import annotations

from typing import Literal

Norm = Literal["rms", "layer", "plain"]
"""RMSNorm (weight), LayerNorm (weight and bias), LayerNorm without parameters."""

_VECTORS: dict[Norm, int] = {"rms": 1, "layer": 2, "plain": 0}


def norm_parameters(norm: Norm | None, width: int) -> int:
    """Parameters of a norm over ``width`` features; 0 where there is no norm."""
    return 0 if norm is None else _VECTORS[norm] * width
