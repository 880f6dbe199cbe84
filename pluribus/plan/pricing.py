"""The pricing problem: the cheapest pipelines at given prices of chips.

A dynamic program from the last stage backwards: the stage that is s-th from the end holds s
micro-batches under 1F1B, so memory is exact at every position. It runs for many *lanes* at once; a
lane has its own limit on a stage's seconds and its own price of time, so that one pass yields
pipelines of many speeds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.columns import Column, StageChoice
from pluribus.plan.prices import Array, Hops, Prices
from pluribus.plan.pricing_table import NativeTable, fill_numpy

_ALIKE = 1.6  # caps within this ratio go through the table together


@dataclass(frozen=True)
class Lanes:
    """What is asked of the dynamic program, each an array over lanes.

    Attributes:
        cap: the most seconds a stage may take for one micro-batch.
        stage: price of a second of a stage.
        hop: price of a second of a message and its answer.
        tail: price of a second between the first stage's last pass and the end of the step.
        hold: micro-batches a stage holds at most, however deep the pipeline; one number for all
            lanes, or an array.
        late: further price of a second of the late stages and of their messages; 0 if None.
        toll: further price of an early stage; 0 if None.
        turn: how many last stages are the late ones; 0 if None. With −1 as many as you like, behind
            a stage that takes at least `least` seconds; its message is a late one. It is the first
            that takes so long where late stages cost more, and the last where they do not.
        least: see `turn`; 0 if None.
    """

    cap: Array
    stage: Array
    hop: Array
    tail: Array
    hold: int | NDArray[np.int64]
    late: Array | None = None
    toll: Array | None = None
    turn: NDArray[np.int64] | None = None
    least: Array | None = None

    def __len__(self) -> int:
        return len(self.cap)

    def __getitem__(self, which: NDArray[np.intp]) -> Lanes:
        of_lanes = {f.name: getattr(self, f.name) for f in fields(self)}
        return Lanes(**{n: v[which] if np.ndim(v) else v for n, v in of_lanes.items()})

    @cached_property
    def table(self) -> Array:
        """[lanes, 9] all of them: cap, stage, hop, tail, late, toll, least, hold, turn."""
        result = np.zeros((len(self), 9))
        times = (self.cap, self.stage, self.hop, self.tail, self.late, self.toll)
        whole = (*times, self.least, self.hold)
        for column, values in enumerate((*whole, self.turn)):
            if values is not None:
                result[:, column] = values
        return result

    @property
    def sides(self) -> int:
        """Of their tables: two where a slow stage comes before the late ones."""
        return 2 if (self.table[:, 8] < 0).any() else 1

    def alike(self) -> list[NDArray[np.intp]]:
        """The lanes in groups that hold and turn alike and have similar caps: short stages make
        deep pipelines and long ones shallow ones, and a pass through the table costs depth ×
        length."""
        group = np.floor(np.log(self.cap / self.cap.min()) / np.log(_ALIKE) + 1e-9)
        keys = np.column_stack([self.table[:, 7:], group])
        _, group = np.unique(keys, axis=0, return_inverse=True)
        return [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]


@dataclass(frozen=True)
class Dearer:
    """By how many seconds at most messages, there and back, take longer with another sender.

    Attributes:
        here: [senders] from any sender of the same pool than from this one, wherever they go; none
            less, as a last stage sends none.
        anywhere: [senders] the same from any sender at all.
        farther: [pools] to any pool than to this one, wherever they are from.
    """

    here: Array
    anywhere: Array
    farther: Array

    @classmethod
    def of(cls, hops: Array, pools: NDArray[np.intp]) -> Dearer:
        """From `Hops.seconds` and the pool of each sender."""
        more = (hops[:, None] - hops[None]).max(axis=2)
        same = pools[:, None] == pools[None]
        farther = (hops.T[:, None] - hops.T[None]).max(axis=(0, 2))
        here = np.where(same, more, 0.0).max(axis=0)
        return cls(here, np.maximum(more.max(axis=0), 0.0), farther)


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

    @cached_property
    def segments(self) -> NDArray[np.int64]:
        """[segments, 4] (q, begin, end, run): the run of q layers from layer a is of this kind for
        every a in [begin, end); by q. Layers alike make few of them."""
        kind, rows = self.prices.runs.kind, []
        size = len(kind)
        for q in range(1, size + 1):
            column = kind[: size - q + 1, q]
            edges = [0, *(np.flatnonzero(np.diff(column)) + 1), len(column)]
            rows += [(q, a, b, column[a]) for a, b in itertools.pairwise(edges)]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def opening(self) -> Array:
        """[kinds, L] `tails` of the runs of 1, 2, … layers from the first one."""
        return np.ascontiguousarray(self.tails[:, self.prices.runs.kind[0, 1:]])

    @cached_property
    def dearer(self) -> Dearer:
        return Dearer.of(self.hops.seconds, self.pool_of_sender)

    @cached_property
    def native(self) -> NativeTable | None:
        """The compiled loops over this problem; None where they could not be compiled."""
        return NativeTable.of(self)

    def solve(
        self, chip_prices: Array, lanes: Lanes, budget: Array, *, columns: bool = True
    ) -> Solution:
        """Prices pipelines of every depth.

        Args:
            chip_prices: of one chip of each pool.
            lanes: what is asked.
            budget: per lane, the price beyond which a pipeline is of no interest: it may then be
                missing.
            columns: whether pipelines will be asked for, not only their prices.
        """
        price = chip_prices[self.pool_of] * self.chips
        if self.native is not None:
            values, tables = self.native.fill(price, lanes, budget, columns)
        else:
            values, tables = fill_numpy(self, price, lanes, budget)
        return Solution(self, price, lanes, values, tables)


@dataclass(frozen=True, eq=False)
class Solution:
    """The filled table of one `Pricer.solve`.

    Attributes:
        price: [kinds] of each kind of stage's chips.
        values: [depths, lanes] least price of a pipeline of 1, 2, … stages; infinite where there
            is none within the lane's budget.
        tables: [lanes, depths, sides, pools, L + 1] least price of the last stages, the first of
            them in a pool, from a layer on; None where they are not wanted. Of lanes with a slow
            stage before the late ones, side 0 has that stage and side 1 only late ones.
    """

    pricer: Pricer
    price: Array
    lanes: Lanes
    values: Array
    tables: Array | None

    def column(self, depth: int, lane: int) -> Column:
        """The cheapest pipeline of a depth and a lane."""
        assert self.tables is not None
        assert self.lanes.late is None
        pricer, lanes = self.pricer, self.lanes
        prices, kind = pricer.prices, pricer.prices.runs.kind
        size = len(kind)
        stages: list[StageChoice] = []
        a, rows = 0, np.arange(len(prices.kinds))
        for left in range(depth, 0, -1):
            lengths = np.arange(1, size - a + 1) if left > 1 else np.array([size - a])
            runs = kind[a, lengths]
            seconds = prices.seconds[np.ix_(rows, runs)]
            price = lanes.stage[lane] * seconds + self.price[rows, None]
            held = prices.most_held[np.ix_(rows, runs)] >= min(left, lanes.table[lane, 7])
            price[~held | (seconds > lanes.cap[lane])] = np.inf
            if a == 0:
                price += lanes.tail[lane] * pricer.opening[np.ix_(rows, lengths - 1)]
            if left > 1:
                hops = lanes.hop[lane] * pricer.hops.seconds
                after = self.tables[lane, left - 2, 0]
                onward = (after[None] + hops[:, :, None]).min(axis=1)
                price += onward[np.ix_(pricer.hops.senders[rows], a + lengths)]
            row, q = divmod(int(price.argmin()), price.shape[1])
            assert np.isfinite(price[row, q])
            row, end = int(rows[row]), a + int(lengths[q])
            stages.append(StageChoice(prices.kinds[row], (a, end)))
            a = end
            if left > 1:
                pool = int((after[:, a] + hops[pricer.hops.senders[row]]).argmin())
                rows = np.flatnonzero(pricer.pool_of == pool)
        return Column(tuple(stages), prices.micro_batch_size)
