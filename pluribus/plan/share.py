"""Deals micro-batches to unlike pipelines so that the last one ends as early as can be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal_micro_batches(
    first: Sequence[float], each: Sequence[float], total: int
) -> tuple[int, ...] | None:
    """Counts m_p ≥ 1 with Σ m_p = total and the least max_p (first_p + (m_p − 1) · each_p).

    Args:
        first: seconds until a pipeline is through with one micro-batch.
        each: seconds every further micro-batch adds.
        total: micro-batches to deal.

    Returns:
        The counts, or None with fewer micro-batches than pipelines.

    Notes:
        Giving the next micro-batch to the pipeline that would end first is exact, because a
        pipeline's end only grows with its count (Gross 1956, marginal allocation).
    """
    if total < len(first):
        return None
    counts = [1] * len(first)
    heap = [(f + e, p) for p, (f, e) in enumerate(zip(first, each, strict=True))]
    heapq.heapify(heap)
    for _ in range(total - len(first)):
        end, p = heap[0]
        counts[p] += 1
        heapq.heapreplace(heap, (end + each[p], p))
    return tuple(counts)


def deal_evenly(num_pipelines: int, total: int) -> tuple[int, ...]:
    """Equal counts, earlier pipelines take the remainder."""
    base, extra = divmod(total, num_pipelines)
    return tuple(base + (p < extra) for p in range(num_pipelines))
