"""Cuts a list of layers over unlike stages so that the slowest stage is as fast as can be: in C
(`split.c`), and the same in numpy. Both give the same bits."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pluribus.core import native

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, native.Signature] = {
    "pluribus_split": (ctypes.c_int, (_INT, _INT, *[_POINTER] * 4)),
}


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.load(Path(__file__).with_name("split.c"), _SIGNATURES)


def min_max_split(costs: Sequence[np.ndarray]) -> tuple[tuple[int, int], ...] | None:
    """The exact cut of layers into contiguous, non-empty stages with the least maximum cost.

    Among the cuts of least maximum, the one of least total: it fills the pipeline fastest.

    Args:
        costs: per stage a [L + 1, L + 1] matrix whose entry [a, b] is the cost of layers [a, b);
            infinite where the stage cannot hold them.

    Returns:
        Per stage its half-open range, or None when no cut is possible.

    Notes:
        Two dynamic programs over (stages, layers), O(S L²): the first finds the least maximum
        (the linear partition problem with unlike bins), the second the least sum below it.
    """
    library = _library()
    if library is None:
        return split_numpy(costs)
    size, stages = costs[0].shape[0], len(costs)
    costs = [np.ascontiguousarray(cost, dtype=np.float64) for cost in costs]
    where = np.array([cost.__array_interface__["data"][0] for cost in costs], dtype=np.uintp)
    work, ends = np.empty(2 * size), np.empty(stages + 1, np.int64)
    choices = np.empty(stages * size, np.int64)
    buffers = (where, work, choices, ends)
    if stages >= size or not library.pluribus_split(
        stages, size, *(buffer.__array_interface__["data"][0] for buffer in buffers)
    ):
        return None
    return tuple(itertools.pairwise(ends.tolist()))


def split_numpy(costs: Sequence[np.ndarray]) -> tuple[tuple[int, int], ...] | None:
    """`min_max_split` without a compiler."""
    size = costs[0].shape[0]
    least = np.full(size, np.inf)
    least[0] = -np.inf
    for cost in costs:
        least = np.min(np.maximum(least[:, None], cost), axis=0)
    bound = least[-1]
    if not np.isfinite(bound):
        return None
    total = np.full(size, np.inf)
    total[0] = 0.0
    choices = []
    for cost in costs:
        allowed = np.where(cost <= bound, cost, np.inf)
        sums = total[:, None] + allowed
        choices.append(np.argmin(sums, axis=0))
        total = np.min(sums, axis=0)
    ends = [size - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    ends.reverse()
    return tuple((a, b) for a, b in itertools.pairwise(ends))


def even_split(num_layers: int, num_stages: int) -> tuple[tuple[int, int], ...]:
    """The cut that ignores unlikeness: equal counts, earlier stages take the remainder."""
    base, extra = divmod(num_layers, num_stages)
    ends = [0]
    for stage in range(num_stages):
        ends.append(ends[-1] + base + (stage < extra))
    return tuple((a, b) for a, b in itertools.pairwise(ends))
