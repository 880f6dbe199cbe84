"""Numbers out of repeated timings: medians, spreads, and the line of a link."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def spread(samples: Sequence[float]) -> float:
    """Half of the interquartile range, relative to the median."""
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return float((high - low) / 2 / middle)


def fit_line(num_bytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The link α + bytes / β that fits best, with α ≥ 0 (Hockney 1994).

    Least squares of the relative residuals: messages of a link span orders of magnitude, and
    absolute residuals would leave the latency to the noise of the largest one.

    Args:
        num_bytes: sizes, at least two different ones.
        seconds: the time of each.

    Returns:
        α in seconds and β in bytes per second.
    """
    times = np.asarray(seconds, dtype=float)
    columns = np.stack([1 / times, np.asarray(num_bytes, dtype=float) / times], axis=1)
    # Scaled so that both columns have length one: bytes and seconds are 1e15 apart.
    scale = np.linalg.norm(columns, axis=0)
    latency, per_byte = np.linalg.lstsq(columns / scale, np.ones_like(times), rcond=None)[0] / scale
    if latency < 0 or per_byte <= 0:
        # The best point with α ≥ 0 is then on that border: one column is left.
        latency, per_byte = 0.0, columns[:, 1].sum() / scale[1] ** 2
    return float(latency), float(1 / per_byte)


def round_figures(number: float, figures: int = 3) -> float:
    """Rounded to significant figures: a measurement has no more of them."""
    return round(number, figures - 1 - math.floor(math.log10(abs(number)))) if number else 0.0
