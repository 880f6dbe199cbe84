"""What gradient sums take at the very least, wherever their members are.

Every pipeline holds every layer on one stage, so with n pipelines the sum of a layer has n members,
and a stage goes through the sums of all its layers one after another. Of each sum the predictor
(`predict.gradients`) adds up what the members of every pool take among themselves, by the quickest
algorithm on the links they have, and the way over the pools.

Take a stage of degree t in a pool. Its sum has m ≤ n members in that pool, the narrowest of degree
t' ≤ t: each moves no less than what a stage of degree t' holds, and at most C / t' of them share a
node of C chips. On as many nodes alike, or flat over one adapter each where nodes are unlike: more
members never make an algorithm quicker, so of each number to a node the fewest nodes will do. If
m < n, the others are in other pools, and the way there ends at the m members here, each of which
carries its part: no less than all bytes over m times the quickest link out of the pool, nor than
those of all ranks over what a shared link has.

An algorithm's seconds are concave in its bytes and not negative at none, hence subadditive, and so
is the least over algorithms, places and m: no way to part a stage's layers into sums takes less
than one sum of them all, which is what is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pluribus.hardware.pool import Pool
from pluribus.plan.prices import Array, Prices
from pluribus.predict.algorithms import ALL_REDUCE, GroupShape
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.link_classes import links_of
from pluribus.predict.replicas import NEVER_HIDDEN
from pluribus.predict.setting import Setting


def least_tails(setting: Setting, prices: Prices, pipelines: int = 2) -> Array:
    """[kinds, runs] seconds that a stage's sums and its update take at the very least.

    Args:
        pipelines: the plan has at least so many.
    """
    software = setting.software
    curves = setting.profile is not None and setting.profile.curves
    if software.frozen or curves or pipelines < 2:
        return prices.update  # sums of adapters, or over links that only a table knows
    pools = tuple(dict.fromkeys(kind.pool for kind in prices.kinds))
    sums = np.empty_like(prices.update)
    for address in pools:
        of_degree = {
            kind.tensor_parallel: prices.parameters[row] * software.gradient_sync_bytes
            for row, kind in enumerate(prices.kinds)
            if kind.pool == address
        }
        whole = np.min([degree * num_bytes for degree, num_bytes in of_degree.items()], axis=0)
        # What a stage takes whose narrowest peer is of a degree.
        narrowest = {
            degree: software.sum_byte_s * num_bytes
            + _Floor(setting, setting.pool(address), pools, degree, num_bytes, whole).seconds(
                pipelines
            )
            for degree, num_bytes in of_degree.items()
        }
        for row, kind in enumerate(prices.kinds):
            if kind.pool == address:
                peers = [s for d, s in narrowest.items() if d <= kind.tensor_parallel]
                sums[row] = np.min(peers, axis=0)
    sums[np.isinf(sums)] = 0.0  # there is no such plan: any number holds
    exposed = NEVER_HIDDEN if software.overlap_gradients else 1.0
    return prices.update + sums * setting.calibration.overhead * exposed


@dataclass(frozen=True, eq=False)
class _Floor:
    """Of the sums of stages in a pool whose narrowest member there is of one degree.

    Attributes:
        pools: all that the job may use.
        num_bytes: [runs] that each rank sums.
        whole: [runs] that all ranks sum, whatever their degree.
    """

    setting: Setting
    pool: Pool
    pools: tuple[str, ...]
    degree: int
    num_bytes: Array
    whole: Array

    def seconds(self, pipelines: int) -> Array:
        """[runs] of a sum of at least so many members."""
        least = self._inside(pipelines)
        for few, many in self._ranges(pipelines):
            least = np.minimum(least, self._inside(few) + self._out(many, pipelines))
        return least

    def _ranges(self, pipelines: int) -> Iterator[tuple[int, int]]:
        """Members here, the fewest and the most, where some are elsewhere."""
        few, room = 1, self._per_node
        while few < pipelines:
            many = few if few < room else 2 * few - 1
            yield few, min(many, pipelines - 1)
            few = many + 1

    @property
    def _per_node(self) -> int:
        return max(self.pool.chips_per_node // self.degree, 1)

    def _inside(self, members: int) -> Array:
        """[runs] that at least so many members of the pool take among themselves; infinite where
        it has no room for them."""
        if members < 2:
            return np.zeros_like(self.num_bytes)
        links, factors = links_of(self.pool), self.setting.calibration
        least = np.full_like(self.num_bytes, np.inf)
        for here in range(1, self._per_node + 1):
            fewest = -(-members // here)
            # One node by its own links; several, which have another factor, by the network too.
            for nodes in {fewest, max(fewest, 2)}:
                if here * nodes * self.degree <= self.pool.num_chips:
                    shape = GroupShape(here, nodes, self.pool.adapters)
                    alone = collective_seconds(ALL_REDUCE, self.num_bytes, shape, links).seconds
                    factor = factors.inter if nodes > 1 else factors.intra
                    least = np.minimum(least, factor * np.asarray(alone))
        return least

    def _out(self, members: int, pipelines: int) -> Array:
        """[runs] of the way over the pools from at most so many members here; infinite where there
        is no other pool."""
        setting, mine, num_bytes = self.setting, self.pool.address, self.num_bytes
        least = np.full_like(num_bytes, np.inf)
        for other in self.pools:
            if other == mine:
                continue
            link, shared = setting.cluster.between(mine, other)
            moving = num_bytes / (link.bytes_per_s * members)
            if shared is not None:
                moving = np.maximum(moving, self.whole / shared.bytes_per_s)
            seconds = (2 * link.latency_s + moving) * setting.calibration.inter
            measured = setting.profile and setting.profile.link(mine, other, ALL_REDUCE)
            if measured and pipelines == 2:  # may be all there are
                alone = measured.latency_s + num_bytes / measured.bytes_per_s
                seconds = np.minimum(seconds, alone)
            least = np.minimum(least, seconds)
        return least
