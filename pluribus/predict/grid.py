"""Values between and beyond the points of a measured grid of degrees and micro-batches.

Over micro-batches a value is affine, over tensor-parallel degrees a power. Beyond the grid it
never falls below what its own last points say: noise and rooflines bend times upward only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Added to the spread of a measurement that is not of the very shape; not fitted.
BETWEEN_SPREAD = 0.05
BEYOND_SPREAD = 0.15


@dataclass(frozen=True, slots=True)
class Reading:
    """A value read off a grid.

    Attributes:
        spread: what its distance from the measured points adds to their own spread.
    """

    value: float
    spread: float = 0.0


def read_grid(grid: Mapping[int, Mapping[int, float]], tp: int, micro_batch: int) -> Reading | None:
    """The value at a shape.

    Args:
        grid: degree -> micro-batch -> value; holes may be anywhere.

    Returns:
        None where one lone point would have to tell of a shape other than its own.
    """
    if tp in grid and (micro_batch in grid[tp] or len(grid[tp]) > 1):
        return _over_micro_batches(grid[tp], micro_batch)
    rows = {}
    for degree, row in grid.items():
        if micro_batch in row or len(row) > 1:
            rows[degree] = _over_micro_batches(row, micro_batch)
    curves = [degree for degree, row in grid.items() if len(row) > 1]
    if tp in grid and curves:  # one point of this degree, and others show how it grows
        ((size, value),) = grid[tp].items()
        near = min(curves, key=lambda degree: abs(math.log(degree / tp)))
        growth = rows[near].value / max(_over_micro_batches(grid[near], size).value, 1e-12)
        return Reading(value * growth, BEYOND_SPREAD)
    if len(rows) < 2:
        return None
    return _over_degrees(rows, tp)


def _over_micro_batches(row: Mapping[int, float], micro_batch: int) -> Reading:
    """Affine between neighbours; beyond the ends by the steeper of the last and the mean slope,
    and towards zero never below proportion, which would be a negative fixed part."""
    if micro_batch in row:
        return Reading(row[micro_batch])
    sizes = sorted(row)
    first, last = sizes[0], sizes[-1]
    if first < micro_batch < last:
        above = next(size for size in sizes if size > micro_batch)
        below = sizes[sizes.index(above) - 1]
        part = (micro_batch - below) / (above - below)
        return Reading(row[below] + part * (row[above] - row[below]), BETWEEN_SPREAD)
    mean = (row[last] - row[first]) / (last - first)
    if micro_batch > last:
        end = sizes[-2]
        slope = max((row[last] - row[end]) / (last - end), mean, 0.0)
        return Reading(row[last] + slope * (micro_batch - last), BEYOND_SPREAD)
    slope = max(min((row[sizes[1]] - row[first]) / (sizes[1] - first), row[first] / first), 0.0)
    return Reading(row[first] - slope * (first - micro_batch), BEYOND_SPREAD)


def _over_degrees(rows: Mapping[int, Reading], tp: int) -> Reading:
    """A power of the degree between neighbours. More chips than measured gain less and less, so
    the last exponent may only grow by what it grew before; neither way is a chip worth more than
    a chip."""
    degrees = sorted(rows)
    inner = max(reading.spread for reading in rows.values())
    if degrees[0] < tp < degrees[-1]:
        above = next(degree for degree in degrees if degree > tp)
        below = degrees[degrees.index(above) - 1]
        exponent = _exponent(rows, below, above)
        value = rows[below].value * (tp / below) ** exponent
        return Reading(value, max(inner, BETWEEN_SPREAD))
    if tp > degrees[-1]:
        end, last = degrees[-2:]
        exponent = _exponent(rows, end, last)
        if len(degrees) > 2:
            exponent += max(0.0, exponent - _exponent(rows, degrees[-3], end))
        return Reading(rows[last].value * (tp / last) ** max(exponent, -1.0), BEYOND_SPREAD)
    first, second = degrees[:2]
    exponent = min(_exponent(rows, first, second), 0.0)
    return Reading(rows[first].value * (tp / first) ** max(exponent, -1.0), BEYOND_SPREAD)


def _exponent(rows: Mapping[int, Reading], a: int, b: int) -> float:
    low, high = max(rows[a].value, 1e-12), max(rows[b].value, 1e-12)
    return math.log(high / low) / math.log(b / a)


def read_share(row: Mapping[int, float], tp: int) -> float:
    """What one of ``tp`` ranks holds: whole parts and divided ones, a + b / tp.

    Args:
        row: degree -> what one rank holds.
    """
    if tp in row:
        return row[tp]
    degrees = sorted(row)
    if len(degrees) == 1:
        return row[degrees[0]] * degrees[0] / tp
    above = next((degree for degree in degrees if degree > tp), None)
    place = len(degrees) - 1 if above is None else max(1, degrees.index(above))
    a, b = degrees[place - 1], degrees[place]
    divided = (row[a] - row[b]) / (1 / a - 1 / b)
    return max(row[a] + divided * (1 / tp - 1 / a), 0.0)
