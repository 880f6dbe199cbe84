"""Cuts a list of layers over unlike stages so that the slowest stage is as fast as can be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


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
