"""That no pipeline of one micro-batch size delivers by a deadline more than its chips cost.

Decided over every number of micro-batches m, depth S and slowest stage τ. τ takes few values, the
seconds of the runs of layers on the kinds of stages: cells of them are halved where they leave
doubt, down to single values. In a cell the dynamic program gives the cheapest pipelines of every
depth with stages no slower than the cell's last value; a pipeline that also has to be through
m micro-batches by the deadline costs at least its Lagrangian, for any price of time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.caps import cells_of, halves, stage_seconds
from pluribus.plan.columns import Column
from pluribus.plan.prices import MANY, Array
from pluribus.plan.pricing import Lanes, Pricer

_MOST = 1200  # cells beyond which a proof is given up
_NARROW = 1.004  # a cell's values within this ratio are looked at with many prices of time
_WIDE = 1.1  # and wider cells without any, as they will be halved anyway
_ROUGH = (0.5, 1.0)  # of what a second is worth at the pace of the slowest stage
_FINE = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.15, 1.4, 1.8, 2.5)
_DENSE = tuple(float(share) for share in np.geomspace(0.1, 4.0, 60))
_BEHIND = 3  # pipelines looked at for each price of time where a proof fails
_EPS = 1e-12
_SINGLE = 1 + 4 * _EPS  # a cell of one value


@dataclass(frozen=True)
class _Way:
    """How a proof goes.

    Attributes:
        shares: of what a second is worth at the pace of the slowest stage, each a price of time.
        later: whether micro-batches go all the way through the later stages alone.
        first: whether the first stage is taken to be the slowest.
    """

    shares: tuple[float, ...]
    later: bool = False
    first: bool = False


@dataclass(eq=False)
class Proof:
    """A proof at one deadline.

    Attributes:
        chip_prices: [pools] sequences that a chip has to deliver.
        least, most: micro-batches of a pipeline.
        failed: seconds of the slowest stages at which the last run failed.
    """

    pricer: Pricer
    chip_prices: Array
    deadline: float
    least: int
    most: int
    failed: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def size(self) -> int:
        return self.pricer.prices.micro_batch_size

    @cached_property
    def _larger(self) -> float:
        """The larger of a stage's two passes is at least this share of both."""
        prices = self.pricer.prices
        return float((np.maximum(prices.forward, prices.backward) / prices.seconds).min())

    def run(self, only: Collection[float] | None = None) -> list[Column] | None:
        """None where it succeeds; else pipelines at which it fails, as far as they are known.

        Args:
            only: seconds of a slowest stage that are looked at; all by default.
        """
        self.failed = np.zeros(0)
        values = stage_seconds(self.pricer.prices, self.deadline / self.least)
        if not len(values):
            return None
        if only is None:
            return self._sweep(values, cells_of(values))
        cells = np.flatnonzero(np.isin(values, list(only)))
        return self._sweep(values, np.stack([cells, cells], axis=1))

    def _sweep(self, values: Array, cells: NDArray[np.intp]) -> list[Column] | None:
        done = 0
        while len(cells):
            done += len(cells)
            if done > _MOST:
                return []
            low, cap = values[cells[:, 0]], values[cells[:, 1]]
            cells = cells[self._open(low * (1 - _EPS), cap)]
            last = cells[cells[:, 0] == cells[:, 1], 0]
            if len(last):
                self.failed = values[last]
                return self._behind(self.failed)
            cells = halves(values, cells)
        return None

    def _open(self, low: Array, cap: Array) -> Array:
        """[cells] whether a pipeline whose slowest stage takes from `low` to `cap` seconds may
        deliver more than it costs."""
        counts = np.minimum(np.floor(self.deadline / low * (1 + _EPS)), self.most)
        result = self._few(low, cap, counts)
        rest = np.flatnonzero(~result & (counts >= self.least))
        result[rest] = self._many(low[rest], cap[rest], counts[rest])
        return result & (counts >= self.least)

    def _few(self, low: Array, cap: Array, counts: Array) -> Array:
        """m ≤ S: a step takes Σe + (m − 1) max(f, b) at least, on the slowest stage. A stage holds
        fewer than S micro-batches; holding one is the least."""
        zero = np.zeros(len(cap))
        lanes = Lanes(cap, zero, zero, zero, 1)
        plain = self._prices(lanes, self.size * counts)
        depths = np.arange(1, len(plain) + 1)[:, None]
        most = np.minimum(depths, counts)
        open_ = (plain < self.size * most) & (most >= self.least)
        cells = np.flatnonzero(open_.any(axis=0))
        result = np.zeros(len(cap), dtype=bool)
        if not len(cells):
            return result
        worth = self.size / low[cells]
        budget = self.size * counts[cells] + worth * self.deadline
        values = self._prices(Lanes(cap[cells], worth, worth, worth, 1), budget)
        for at, cell in enumerate(cells):
            depth = np.flatnonzero(open_[: len(values), cell])[:, None]
            m = np.arange(self.least, int(counts[cell]) + 1)
            room = self.deadline - (m - 1) * low[cell] * self._larger
            price = np.maximum(plain[depth, cell], values[depth, at] - worth[at] * room)
            result[cell] = ((price < self.size * m) & (m <= depth + 1)).any()
        return result

    def _many(self, low: Array, cap: Array, counts: Array) -> Array:
        """m > S: a step takes (k + 1) Σe + (m − 1 − k S) τ for every k ≤ (m − 1) / S.

        That counts a first stage that has little to do, such as an embedding alone, for a slow one.
        The later stages are a pipeline too: a step takes e₀ + (k + 1) Σ' e + (m − 1 − k (S − 1)) τ,
        the sum over them, unless only the first stage is as slow as τ.
        """
        zero = np.zeros(len(cap))
        plain = self._prices(Lanes(cap, zero, zero, zero, MANY), self.size * counts)
        depths = np.arange(1, len(plain) + 1)[:, None]
        possible = (plain < self.size * counts) & (depths < counts)
        result = possible.any(axis=0)
        ways = (
            (_Way(_ROUGH), _WIDE), (_Way(_FINE), _NARROW), (_Way(_FINE, later=True), _NARROW),
            (_Way(_DENSE), _SINGLE), (_Way(_DENSE, later=True), _SINGLE),
        )  # fmt: skip
        for way, widest in ways:
            cells = np.flatnonzero(result)
            cells = cells[cap[cells] <= low[cells] * widest]
            if not len(cells):
                break
            left = self._outlast(way, low, cap, counts, cells, plain, possible)
            if way.later:
                # Or the first stage alone is the slowest.
                first = _Way(way.shares, first=True)
                left |= self._outlast(first, low, cap, counts, cells, plain, possible)
            result[cells] = left
        return result

    def _outlast(
        self, way: _Way, low: Array, cap: Array, counts: Array, cells: Array, plain: Array,
        possible: Array,
    ) -> Array:  # fmt: skip
        """[cells] whether some pipeline may still deliver more than it costs."""
        lanes, ways = self._timed(way, low, cap, cells, possible)
        weights = lanes.stage.reshape(len(cells), -1)
        # With k ≥ 1 there is room for half a deadline at most.
        budget = np.repeat(self.size * counts[cells], weights.shape[1])
        values = self._prices(lanes, budget + lanes.stage * self.deadline / 2)
        values = values.reshape(len(values), *weights.shape)
        result = np.zeros(len(cells), dtype=bool)
        for at, cell in enumerate(cells):
            depth = np.flatnonzero(possible[: len(values), cell])
            result[at] = self._left(
                plain[depth, cell], values[depth, at].T, depth + 1, weights[at], ways[at],
                low[cell], int(counts[cell]), int(way.later),
            )  # fmt: skip
        return result

    def _timed(
        self, way: _Way, low: Array, cap: Array, cells: Array, possible: Array
    ) -> tuple[Lanes, Array]:
        """Lanes with a price of time, of each cell as many, and [cells, lanes] the most k + 1 that
        each is made for."""
        shallow = possible[:, cells].argmax(axis=0) + 1.0
        deep = len(possible) - possible[::-1, cells].argmax(axis=0)
        most = np.maximum(np.floor(self.deadline / (low[cells] * np.sqrt(shallow * deep))) + 1, 2.0)
        middle = np.maximum(np.floor(np.sqrt(2 * most)), 2.0)
        two = np.full(len(cells), 2.0)
        ways = np.stack([two, most] if way.shares is _ROUGH else [two, middle, most], axis=1)
        ways = np.repeat(ways, len(way.shares), axis=1)
        theta = np.tile(way.shares, ways.shape[1] // len(way.shares))
        weights = self.size / low[cells, None] * ways * theta
        stage, once = weights.ravel(), (weights / ways).ravel()
        lanes = Lanes(
            np.repeat(cap[cells], weights.shape[1]), stage, stage, once, MANY,
            first=once if way.later else None,
            least=np.repeat(low[cells], weights.shape[1]) if way.first else None,
        )  # fmt: skip
        return lanes, ways

    def _left(
        self, plain: Array, values: Array, depths: Array, weights: Array, ways: Array,
        low: float, count: int, apart: int,
    ) -> bool:  # fmt: skip
        """Whether for some depth and m ≤ count no lane's price is as high as what is delivered.

        Args:
            apart: stages that the excursions leave out.
        """
        if not len(depths):
            return False
        s = depths[:, None]
        around = np.maximum(s - apart, 1)
        first = max(int(np.floor(plain.min() / self.size)), self.least, int(depths.min()) + 1)
        m = np.arange(first, count + 1)
        open_ = (m > s) & (self.size * m > plain[:, None])
        k = np.minimum(np.floor((m - 1) / around), ways[:, None, None] - 1)
        room = (self.deadline - (m - 1 - k * around) * low) / (k + 1)
        price = values[:, :, None] - weights[:, None, None] * room
        price = np.where((k >= 1) & (s > apart), price, -np.inf).max(axis=0)
        return bool((open_ & (price < self.size * m)).any())

    def _prices(self, lanes: Lanes, budget: Array) -> Array:
        """[depths, lanes] least prices, one depth at least."""
        values = self.pricer.solve(self.chip_prices, lanes, budget, columns=False).values
        return values if len(values) else np.full((1, len(lanes)), np.inf)

    def _behind(self, cap: Array) -> list[Column]:
        """The cheapest pipelines of every depth with stages no slower than these."""
        shares = (0.0, *_FINE[::2])
        caps, theta = np.repeat(cap, len(shares)), np.tile(shares, len(cap))
        worth = self.size / caps
        count = np.minimum(self.deadline / caps, self.most)
        lanes = Lanes(caps, 2 * worth * theta, 2 * worth * theta, worth * theta, MANY)
        budget = self.size * count + lanes.stage * self.deadline / 2
        solution = self.pricer.solve(self.chip_prices, lanes, budget)
        found: dict[Column, None] = {}
        for lane in range(len(caps)):
            # What is not paid for by m micro-batches of the lane's own pace is not looked at.
            depths = np.flatnonzero(solution.values[:, lane] <= budget[lane])
            for depth in depths[np.argsort(solution.values[depths, lane])][:_BEHIND]:
                found.setdefault(solution.column(int(depth) + 1, lane))
        return list(found)
