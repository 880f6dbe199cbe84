"""A step that no plan can go below.

Prices λ of chips prove a bound: if no pipeline can deliver by a deadline T more sequences than its
chips cost, then no plan delivers more than all chips cost, Σ λ N (LP duality; Farley 1990). With λ
scaled to cost just less than the global batch, T is too short for any plan. Whether a pipeline can
is decided with times that no timeline goes below (`pace`), over every micro-batch size b, number of
micro-batches m, depth S and slowest stage τ, in cells of τ that are split where they leave doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pluribus.plan.generate import Generator
from pluribus.plan.prices import MANY, Array, Hops
from pluribus.plan.pricing import Lanes, Pricer
from pluribus.plan.sums import least_tails

_SAFE = 1e-7  # relative room for rounding errors
_SHARES = (0.985, 0.95, 0.85)  # of the generator's deadline, tried in turn
_SPLITS = 7  # halvings of a cell before it counts as unproven
_CELLS = 10  # cells to begin with
_WIDEST = 40  # open cells beyond which a proof is given up


@dataclass(eq=False)
class Bound:
    """Proofs in the setting of a generator."""

    generator: Generator

    def __post_init__(self) -> None:
        generator = self.generator
        self._alone: dict[int, Pricer] = {}
        self._among: dict[int, Pricer] = {}
        for size, pricer in generator.pricers.items():
            prices = pricer.prices
            hops = Hops.of(generator.setting, prices.kinds, generator.pools, size, near=True)
            self._alone[size] = replace(pricer, hops=hops, tails=prices.update)
            tails = least_tails(generator.setting, prices)
            self._among[size] = replace(pricer, hops=hops, tails=tails)

    def seconds(self, deadline: float) -> float:
        """A step that no plan goes below.

        Args:
            deadline: of the generator's best mix of fractions, near which it is looked for.
        """
        low = self.generator.ideal_seconds
        for share in _SHARES:
            if deadline * share <= low:
                break
            if self.too_short(deadline * share):
                low = deadline * share
                better = deadline * (1 - (1 - share) / 2)
                return better if self.too_short(better) else low
        return low

    def too_short(self, deadline: float) -> bool:
        """Whether it is proven that no plan ends by a deadline."""
        generator = self.generator
        worth = generator.chip_prices(deadline)
        total = float(worth @ generator.available)
        chip_prices = worth * (generator.batch * (1 - _SAFE) / total)
        for size in generator.pricers:
            most = generator.batch // size
            pricer = self._among[size]
            if not _Proof(self._alone[size], chip_prices, deadline, most).single():
                pricer = self._alone[size]
            if not _Proof(pricer, chip_prices, deadline, most).run():
                return False
        return True


@dataclass(eq=False)
class _Proof:
    """That no pipeline of one micro-batch size is worth more than its chips cost."""

    pricer: Pricer
    chip_prices: Array
    deadline: float
    most: int  # micro-batches in the global batch

    def single(self) -> bool:
        """That no pipeline does the whole batch by itself: its stages take T/m at most."""
        cap = np.array([self.deadline / self.most])
        nothing = np.zeros(1)
        budget = np.array([float(self.most * self.size)])
        lanes = Lanes(cap, nothing, nothing, nothing, 1)
        values = self.pricer.solve(self.chip_prices, lanes, budget).values
        return bool(values.min() >= self.most * self.size)

    @property
    def size(self) -> int:
        return self.pricer.prices.micro_batch_size

    def run(self) -> bool:
        """Goes through the cells of τ."""
        prices = self.pricer.prices
        each = prices.seconds[:, np.flatnonzero(prices.runs.counts.sum(axis=1) == 1)]
        # No pipeline is quicker than its slowest layer on its quickest kind of stage.
        least = float(each.min(axis=0).max()) * (1 - 1e-12)
        if least > self.deadline:
            return True
        edges = np.geomspace(least, self.deadline * (1 + 1e-12), _CELLS + 1)
        cells = np.stack([edges[:-1], edges[1:]], axis=1)
        for _ in range(_SPLITS):
            cells = cells[self._open(cells)]
            if not len(cells):
                return True
            if len(cells) > _WIDEST:
                return False
            middle = np.sqrt(cells[:, 0] * cells[:, 1])
            cells = np.concatenate(
                [np.stack([cells[:, 0], middle], 1), np.stack([middle, cells[:, 1]], 1)]
            )
        return not self._open(cells).any()

    def _open(self, cells: Array) -> Array:
        """[cells] whether a pipeline whose slowest stage takes τ of a cell may be worth more."""
        return self._doubt(cells)

    def _doubt(self, cells: Array) -> Array:
        low, cap = cells.T
        zero = np.zeros(len(cells))
        counts = np.minimum(np.floor(self.deadline / low), self.most)
        budget = self.size * counts
        # With m ≤ S a stage holds fewer than S micro-batches; holding one is the least.
        few = Lanes(cap, zero, zero, zero, 1)
        plain = self.pricer.solve(self.chip_prices, few, budget).values
        doubt = np.zeros(len(cells), dtype=bool)
        shallow = self._few(plain, counts)
        if shallow.any():
            worth = self.size / low
            lanes = Lanes(cap, worth, worth, worth, 1)
            values = self.pricer.solve(
                self.chip_prices, lanes, budget + worth * self.deadline
            ).values
            shallow = self._few_timed(values, plain, low, counts, worth)
        doubt |= shallow
        plain = self.pricer.solve(self.chip_prices, replace(few, hold=MANY), budget).values
        return doubt | self._many(plain, low, cap, counts)

    def _few(self, plain: Array, counts: Array) -> Array:
        depths = np.arange(1, len(plain) + 1)[:, None]
        return (plain < self.size * np.minimum(depths, counts)).any(axis=0)

    def _few_timed(
        self, values: Array, plain: Array, low: Array, counts: Array, worth: Array
    ) -> Array:
        """m ≤ S: a step takes Σe + (m − 1) τ / 2 at least."""
        result = np.zeros(len(low), dtype=bool)
        depth = min(len(values), len(plain))
        for i in range(len(low)):
            m = np.arange(1, int(counts[i]) + 1)
            depths = np.arange(1, depth + 1)[:, None]
            room = self.deadline - (m - 1) * low[i] / 2
            bound = np.maximum(plain[:depth, i, None], values[:depth, i, None] - worth[i] * room)
            result[i] = ((bound < self.size * m) & (m <= depths)).any()
        return result

    def _many(self, plain: Array, low: Array, cap: Array, counts: Array) -> Array:
        """m > S: a step takes (k + 1) Σe + (m − 1 − k S) τ for every k ≤ (m − 1) / S."""
        depths = np.arange(1, len(plain) + 1)
        possible = (plain < self.size * counts) & (depths[:, None] < counts)
        if not possible.any():
            return np.zeros(len(low), dtype=bool)
        mine = depths[possible.any(axis=1)]
        levels = np.unique(np.geomspace(mine[0], mine[-1], _levels(mine)).round())
        worth = self.size / low
        rows = [(np.full(len(low), 2.0), theta) for theta in (1.0, 0.5)]
        rows += [
            (np.maximum(self.deadline / (low * depth) + 1, 2.0), theta)
            for depth in levels
            for theta in (1.0, 0.6)
        ]
        ways = np.stack([way for way, _ in rows])  # the most k + 1 that a lane is made for
        weights = np.stack([worth * way * theta for way, theta in rows])
        lanes = Lanes(
            np.tile(cap, len(rows)),
            weights.ravel(),
            weights.ravel(),
            (weights / ways).ravel(),
            MANY,
        )
        # With k ≥ 1 there is room for half a deadline at most.
        budget = np.tile(self.size * counts, len(rows)) + weights.ravel() * self.deadline / 2
        values = self.pricer.solve(self.chip_prices, lanes, budget).values
        values = values.reshape(len(values), len(rows), len(low))
        result = np.zeros(len(low), dtype=bool)
        for i in np.flatnonzero(possible.any(axis=0)):
            depth = np.flatnonzero(possible[:, i]) + 1
            depth = depth[depth <= len(values)]
            m = np.arange(2, int(counts[i]) + 1)[None]
            s = depth[:, None]
            bound = np.broadcast_to(plain[depth - 1, i, None], (len(depth), m.size)).copy()
            for lane in range(len(rows)):
                k = np.minimum(np.floor((m - 1) / s), np.floor(ways[lane, i] * (1 + 1e-12)) - 1)
                room = (self.deadline - (m - 1 - k * s) * low[i]) / (k + 1)
                value = values[depth - 1, lane, i, None] - weights[lane, i] * room
                np.maximum(bound, np.where(k >= 1, value, -np.inf), out=bound)
            result[i] = ((bound < self.size * m) & (m > s) & (m * low[i] <= self.deadline)).any()
        return result


def _levels(depths: Array) -> int:
    """How many depths lanes are made for."""
    return int(np.ceil(np.log(depths[-1] / depths[0]) / np.log(1.7))) + 1
