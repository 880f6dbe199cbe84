"""Flows that share links: max-min fair rates on a capacity graph, and when each flow ends.

A flow crosses a set of links; max-min fairness gives it the largest rate that no slower flow
pays for (Bertsekas and Gallager 1992, Data Networks, §6.5.2). Found by progressive filling,
all flows at once: in a round every link that is the bottleneck of all its flows is filled. What
a fabric of equal links and a symmetric step need is one round.

The links a flow crosses stand in one flat array, cut by ``offsets``: flow f crosses
``links[offsets[f] : offsets[f + 1]]``, each link at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Shares that agree to this fraction are one bottleneck, ends that do are one event.
_TIE = 1e-9


@dataclass(frozen=True)
class Flows:
    """Which links each flow crosses.

    Attributes:
        links: indices into the capacities, flow after flow, shape [crossings].
        offsets: where each flow's links begin, and the end, shape [flows + 1]; every flow
            crosses at least one link.
    """

    links: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[Sequence[int]]) -> Flows:
        """From a list of links for each flow."""
        counts = [len(path) for path in paths]
        assert all(counts), "a flow crosses no link"
        links = np.fromiter((link for path in paths for link in path), np.intp, sum(counts))
        return cls(links, np.concatenate(([0], np.cumsum(counts, dtype=np.intp))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def some(self, kept: np.ndarray) -> Flows:
        """The flows where ``kept`` (shape [flows], bool) is true."""
        counts = np.diff(self.offsets)
        links = self.links[np.repeat(kept, counts)]
        return Flows(links, np.concatenate(([0], np.cumsum(counts[kept]))))


def max_min_rates(flows: Flows, capacity: np.ndarray) -> np.ndarray:
    """The max-min fair rate of every flow.

    Args:
        capacity: of each link, bytes/s, shape [links]; above zero.

    Returns:
        bytes/s, shape [flows].
    """
    rates = np.zeros(len(flows))
    left = np.asarray(capacity, float).copy()
    waiting = np.arange(len(flows))
    while len(waiting):
        crossing = np.bincount(flows.links, minlength=len(left))
        # Rounding can leave a filled link a hair below nothing.
        share = np.full(len(left), np.inf)
        np.divide(np.maximum(left, 0.0), crossing, out=share, where=crossing > 0)
        counts = np.diff(flows.offsets)
        least = np.minimum.reduceat(share[flows.links], flows.offsets[:-1])
        # A link is a bottleneck when none of its flows is held back more by another link.
        elsewhere = np.repeat(least, counts) < share[flows.links] * (1 - _TIE)
        held = np.bincount(flows.links, weights=elsewhere, minlength=len(left)) > 0
        full = np.logical_or.reduceat(~held[flows.links] & ~elsewhere, flows.offsets[:-1])
        rates[waiting[full]] = least[full]
        spent = np.repeat(full, counts)
        left -= np.bincount(
            flows.links[spent], weights=np.repeat(least[full], counts[full]), minlength=len(left)
        )
        waiting, flows = waiting[~full], flows.some(~full)
    return rates


def completion_seconds(
    flows: Flows, num_bytes: np.ndarray | float, capacity: np.ndarray
) -> np.ndarray:
    """When each flow ends if all begin together and rates follow who is still there.

    Args:
        num_bytes: of each flow, shape [flows], or one number for all.
        capacity: of each link, bytes/s, shape [links].

    Returns:
        seconds, shape [flows].
    """
    left = np.array(np.broadcast_to(num_bytes, len(flows)), float)
    ends = np.zeros(len(flows))
    moving = np.flatnonzero(left > 0)
    flows = flows.some(left > 0)
    now = 0.0
    while len(moving):
        rates = max_min_rates(flows, capacity)
        needed = left[moving] / rates
        step = needed.min()
        now += step
        done = needed <= step * (1 + _TIE)
        left[moving] -= step * rates
        ends[moving[done]] = now
        moving, flows = moving[~done], flows.some(~done)
    return ends


def adapters(sources: np.ndarray, targets: np.ndarray) -> Flows:
    """Flows between adapters of a fabric that never blocks: link 2 i sends for adapter i and
    link 2 i + 1 receives.

    Args:
        sources: adapter each flow leaves, shape [flows].
        targets: adapter it reaches, shape [flows].
    """
    links = np.stack([2 * np.asarray(sources), 2 * np.asarray(targets) + 1], axis=1)
    return Flows(links.ravel(), 2 * np.arange(len(links) + 1))


def concurrent_ring_seconds(
    rings: Sequence[Sequence[int]],
    num_bytes: Sequence[float],
    adapter_bytes_per_s: np.ndarray,
    step_s: float,
    rounds: int = 2,
) -> np.ndarray:
    """Seconds of several ring collectives that run at once over shared adapters.

    A ring moves no faster than its slowest hop, so it counts as one flow over all its adapters.
    The volume over an adapter is that of `ring_all_reduce_seconds`.

    Args:
        rings: adapters of each ring in order; an adapter is in a ring once.
        num_bytes: buffer of each ring.
        adapter_bytes_per_s: of each adapter and direction, shape [adapters].
        step_s: α of one step.
        rounds: 2 for an all-reduce, 1 for a gather or a scatter.

    Returns:
        seconds, shape [rings].
    """
    flows = Flows.of([[link for i in ring for link in (2 * i, 2 * i + 1)] for ring in rings])
    members = np.array([len(ring) for ring in rings])
    wire = rounds * (members - 1) / members * np.asarray(num_bytes, float)
    moving = completion_seconds(flows, wire, np.repeat(adapter_bytes_per_s, 2))
    return moving + rounds * (members - 1) * step_s
