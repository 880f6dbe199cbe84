"""The pricing problem: the cheapest pipelines at given prices of chips.

A dynamic program from the last stage backwards: the stage that is s-th from the end holds s
micro-batches under 1F1B, so memory is exact at every position. It runs for many *lanes* at once; a
lane has its own limit on a stage's seconds and its own price of time, so that one pass yields
pipelines of many speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.columns import Column, StageChoice
from pluribus.plan.prices import MANY, Array, Hops, Prices

_ALIKE = 1.6  # caps within this ratio go through the table together


@dataclass(frozen=True)
class Lanes:
    """What is asked of the dynamic program, each an array over lanes.

    Attributes:
        cap: the most seconds a stage may take for one micro-batch.
        stage: price of a second of a stage.
        hop: price of a second of a message and its answer.
        tail: price of a second between the first stage's last pass and the end of the step.
        hold: micro-batches a stage holds at most, however deep the pipeline.
    """

    cap: Array
    stage: Array
    hop: Array
    tail: Array
    hold: int

    def __len__(self) -> int:
        return len(self.cap)

    def __getitem__(self, which: NDArray[np.intp]) -> Lanes:
        return Lanes(
            self.cap[which], self.stage[which], self.hop[which], self.tail[which], self.hold
        )

    def alike(self) -> list[NDArray[np.intp]]:
        """The lanes in groups of similar caps: short stages make deep pipelines and long ones
        shallow ones, and a pass through the table costs depth × length."""
        order = np.argsort(self.cap, kind="stable")
        group = np.floor(np.log(self.cap[order] / self.cap[order[0]]) / np.log(_ALIKE) + 1e-9)
        return np.split(order, np.flatnonzero(np.diff(group)) + 1)


@dataclass(frozen=True, eq=False)
class Pricer:
    """The dynamic program for one micro-batch size.

    Attributes:
        prices: of runs on kinds of stages.
        pools: addresses; prices of chips come in this order.
        tails: [kinds, runs] seconds from a first stage's last pass to the end of the step.
    """

    prices: Prices
    hops: Hops
    pools: tuple[str, ...]
    tails: Array

    @cached_property
    def pool_of(self) -> NDArray[np.intp]:
        """Of each kind of stage, its pool's position."""
        return np.array([self.pools.index(kind.pool) for kind in self.prices.kinds])

    @cached_property
    def pool_of_sender(self) -> NDArray[np.intp]:
        pools = np.zeros(len(self.hops.seconds), dtype=np.intp)
        pools[self.hops.senders] = self.pool_of
        return pools

    @cached_property
    def chips(self) -> NDArray[np.intp]:
        """Of each kind of stage, its chips."""
        return np.array([kind.num_chips for kind in self.prices.kinds])

    def solve(self, chip_prices: Array, lanes: Lanes, budget: Array) -> Solution:
        """Prices pipelines of every depth.

        Args:
            chip_prices: of one chip of each pool.
            lanes: what is asked.
            budget: per lane, the price beyond which a pipeline is of no interest.
        """
        solution = Solution(self, chip_prices, lanes)
        solution.fill(budget)
        return solution


class Solution:
    """The filled table of one `Pricer.solve`.

    Attributes:
        values: [depths, lanes] least price of a pipeline of 1, 2, … stages.
    """

    def __init__(self, pricer: Pricer, chip_prices: Array, lanes: Lanes) -> None:
        self.pricer = pricer
        self.lanes = lanes
        prices = pricer.prices
        self._price = chip_prices[pricer.pool_of] * pricer.chips
        # Runs too long for any lane never appear below.
        quickest = prices.seconds.min(axis=0)
        short = quickest <= lanes.cap.max()
        kind = prices.runs.kind
        lengths = [q for q in range(1, kind.shape[1]) if short[kind[: len(kind) - q + 1, q]].any()]
        self._longest = max(lengths, default=0)
        self._tables: list[Array] = []
        self.values = np.empty((0, len(lanes)))

    def _stage_prices(self, lanes: slice | NDArray[np.intp]) -> Array:
        """[lanes, kinds, runs] price of a stage; infinite where it takes too long."""
        seconds = self.pricer.prices.seconds
        result = self.lanes.stage[lanes][:, None, None] * seconds
        result += self._price[:, None]
        result[seconds > self.lanes.cap[lanes][:, None, None]] = np.inf
        return result

    def _fits(self, depth: int) -> NDArray[np.bool_]:
        """[kinds, runs] whether the stage that is `depth`-th from the end has the memory."""
        return self.pricer.prices.most_held >= min(depth, self.lanes.hold)

    def _onward(self, table: Array, lanes: slice | NDArray[np.intp]) -> Array:
        """[lanes, senders, L + 1] price of the later stages and the message to them."""
        hops = self.lanes.hop[lanes][:, None, None] * self.pricer.hops.seconds
        result = np.full((len(table), hops.shape[1], table.shape[2]), np.inf)
        for pool in range(table.shape[1]):
            np.minimum(result, table[:, None, pool] + hops[:, :, pool, None], out=result)
        return result

    def fill(self, budget: Array) -> None:
        pricer = self.pricer
        kind = pricer.prices.runs.kind
        size = len(kind)
        everything = slice(None)
        stage = self._stage_prices(everything)
        senders, num_senders = pricer.hops.senders, len(pricer.hops.seconds)
        members = [np.flatnonzero(senders == g) for g in range(num_senders)]
        opening = pricer.tails[:, kind[0, 1:]]  # [kinds, lengths]
        lengths = pricer.prices.runs.counts.sum(axis=1)
        cheapest_layer = (stage / lengths).min(axis=(1, 2))
        # Of the layers not yet held; a way to use chips that holds none has no price at all.
        before = (
            np.arange(size + 1)
            * np.where(np.isfinite(cheapest_layer), cheapest_layer, float(MANY))[:, None]
        )
        values: list[Array] = []
        fits = None
        for depth in range(1, size + 1):
            now = self._fits(depth)
            if fits is None or (now != fits).any():
                fits = now
                masked = np.where(fits, stage, np.inf)
                cheapest = np.stack([masked[:, m].min(axis=1) for m in members], axis=1)
            onward = self._onward(self._tables[-1], everything) if self._tables else None
            table = self._layer(cheapest, onward)
            first = self._first(masked, onward, opening)
            values.append(first)
            self._tables.append(table)
            if not ((table.min(axis=1) + before).min(axis=1) <= budget).any():
                break
        self.values = np.stack(values)

    def _layer(self, cheapest: Array, onward: Array | None) -> Array:
        """[lanes, pools, L + 1] least price of the last stages from layer a on."""
        kind = self.pricer.prices.runs.kind
        size = len(kind)
        pools = self.pricer.pool_of_sender
        result = np.full((len(cheapest), cheapest.shape[1], size + 1), np.inf)
        if onward is None:
            last = np.arange(max(size - self._longest, 0), size)
            result[:, :, last] = cheapest[:, :, kind[last, size - last]]
        else:
            for q in range(1, min(self._longest, size - 1) + 1):
                price = cheapest.take(kind[: size - q, q], axis=2)
                price += onward[:, :, q:size]
                np.minimum(result[:, :, : size - q], price, out=result[:, :, : size - q])
        if len(pools) == len(self.pricer.pools):
            return result[:, np.argsort(pools)]
        return np.stack(
            [result[:, pools == p].min(axis=1) for p in range(len(self.pricer.pools))], axis=1
        )

    def _first(self, stage: Array, onward: Array | None, opening: Array) -> Array:
        """[lanes] least price of a whole pipeline, its first stage with the step's tail."""
        return self._openings(stage, onward, opening, slice(None)).min(axis=(1, 2))

    def _openings(
        self, stage: Array, onward: Array | None, opening: Array, lanes: slice | NDArray[np.intp]
    ) -> Array:
        """[lanes, kinds, lengths] price of a whole pipeline by its first stage."""
        kind = self.pricer.prices.runs.kind
        size = len(kind)
        longest = min(self._longest, size)
        price = stage[:, :, kind[0, 1 : longest + 1]]
        price += self.lanes.tail[lanes][:, None, None] * opening[:, :longest]
        if onward is None:
            price[:, :, : size - 1] = np.inf
            if longest < size:
                price[:] = np.inf
        else:
            price += onward[:, self.pricer.hops.senders, 1 : longest + 1]
        return price

    def column(self, depth: int, lane: int) -> Column:
        """The cheapest pipeline of a depth and a lane."""
        one = np.array([lane])
        prices, kind = self.pricer.prices, self.pricer.prices.runs.kind
        size = len(kind)
        stage = self._stage_prices(one)
        stages: list[StageChoice] = []
        a, pool = 0, None
        for left in range(depth, 0, -1):
            masked = np.where(self._fits(left), stage, np.inf)
            onward = self._onward(self._tables[left - 2][one], one) if left > 1 else None
            if pool is None:
                price = self._openings(masked, onward, self.pricer.tails[:, kind[0, 1:]], one)[0]
                row, q = divmod(int(price.argmin()), price.shape[1])
                q += 1
            else:
                lengths = np.arange(1, min(self._longest, size - a) + 1)
                price = masked[0][:, kind[a, lengths]]
                if onward is None:
                    price = np.where(lengths == size - a, price, np.inf)
                else:
                    price = price + onward[0][self.pricer.hops.senders][:, a + lengths]
                price = np.where((self.pricer.pool_of == pool)[:, None], price, np.inf)
                row, q = divmod(int(price.argmin()), price.shape[1])
                q += 1
            assert np.isfinite(price[row, q - 1])
            stages.append(StageChoice(prices.kinds[row], (a, a + q)))
            a += q
            if left > 1:
                sender = self.pricer.hops.senders[row]
                after = self._tables[left - 2][lane, :, a]
                after = after + self.lanes.hop[lane] * self.pricer.hops.seconds[sender]
                pool = int(after.argmin())
        return Column(tuple(stages), prices.micro_batch_size)
