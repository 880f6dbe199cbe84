"""That no pipeline of one micro-batch size delivers by a deadline more than its chips cost.

Decided over every number of micro-batches m, depth S and slowest stage τ. τ takes few values, the
seconds of the runs of layers on the kinds of stages: cells of them are halved where they leave
doubt, down to single values. In a cell the dynamic program gives the cheapest pipelines of every
depth with stages no slower than the cell's last value; a pipeline that also has to be through
m micro-batches by the deadline costs at least its Lagrangian, for any price of time.

How long m micro-batches take at least: a path through the 1F1B schedule follows one micro-batch to
the last stage and back, to any stage; the next one that this stage then takes, S − s later, to the
last stage and back again, and so on. It passes stage s and its message c_s times, later stages no
less often than earlier ones, and skips Σ(c − 1) < m micro-batches. The others it may wait for on
the slowest stage: a step takes Σ c e + (m − 1 − Σ(c − 1)) τ, where the slowest stage is passed
twice at least, and with the longer of its two passes for τ otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.caps import cells_of, halves, stage_seconds
from pluribus.plan.columns import Column
from pluribus.plan.labels import cheap_and_quick
from pluribus.plan.prices import MANY, Array
from pluribus.plan.pricing import Lanes, Pricer

_AT_ONCE = 16  # cells looked at together
_MOST = 1200  # cells beyond which a proof is given up
_WIDE = 1.25  # and of wider cells no price of time is tried
_NARROW = 1.004  # a cell's values within this ratio are looked at with many prices of time
# Of what a second is worth at the pace of the slowest stage.
_FINE = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.15, 1.4, 1.8, 2.5)
# Of lanes for m ≤ S: what a second is worth; how many of m − 1 last stages are passed twice, or −1
# where stages behind the slowest one are late; further passes of these; and waits they are let off.
_FEW_FIRST = ((0.9, -1, 0, 1), (0.8, 0.5, 1, 0))
_FEW_ROUGH = ((0.7, -1, 0, 1), (1.1, -1, 0, 1), (0.6, 1, 1, 0))
_FEW = (
    *_FEW_ROUGH, (0.5, -1, 0, 1), (1.4, -1, 0, 1), (0.3, 1, 1, 0), (0.8, 1, 1, 0), (1.4, 1, 1, 0),
    (0.8, 0, 0, 0), (0.8, -1, -1, 0), (2.0, -1, -1, 0),
)  # fmt: skip
_LABELLED = (0.02, 0.3, 0.6, 0.9, 1.2, 1.6, 2.2)  # prices of time that guide labels
_PAIRS = 24  # depths and counts left open of a single value that labels are tried for
_BEHIND = 3  # pipelines looked at for each price of time where a proof fails
_EPS = 1e-12
_SINGLE = 1 + 4 * _EPS  # a cell of one value


@dataclass(frozen=True)
class _Way:
    """How a proof goes.

    Attributes:
        shares: of what a second is worth at the pace of the slowest stage, each a price of time.
        turning: whether stages before the slowest are passed once, not as often as the others.
        widest: ratio of a cell's values up to which it is tried.
        often: how often stages are passed: 0 stands for twice, 1 for as often as there is time.
    """

    shares: tuple[float, ...]
    turning: bool
    widest: float
    often: tuple[float, ...]


_WAYS = (
    _Way((0.9, 1.4), False, 1.1, (0.0, 1.0)), _Way((0.95,), True, 1.065, (0.0,)),
    _Way((0.75, 1.15), True, 1.03, (0.0,)),
    _Way((0.5, 0.65, 0.9, 1.4, 1.8, 2.5), True, _NARROW, (0.0,)),
)  # fmt: skip
# Where one value is left, after labels.
_LAST_WAYS = (_Way(_FINE, False, _SINGLE, (0.0, 0.5, 1.0)), _Way(_FINE, True, _SINGLE, (0.5, 1.0)))


@dataclass(eq=False)
class Proof:
    """A proof at one deadline.

    Attributes:
        chip_prices: [pools] sequences that a chip has to deliver.
        least, most: micro-batches of a pipeline.
        each: sequences that a pipeline has to deliver beside those of its chips.
        failed: seconds of the slowest stages at which the last run failed.
        found: pipelines that may deliver so many sequences there for all that it has proven.
        looked_at: cells of the last run.
    """

    pricer: Pricer
    chip_prices: Array
    deadline: float
    least: int
    most: int
    each: float = 0.0
    failed: Array = field(default_factory=lambda: np.zeros(0))
    found: dict[Column, int] = field(default_factory=dict)
    looked_at: int = 0

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
        self.failed, self.found, self.looked_at = np.zeros(0), {}, 0
        values = stage_seconds(self.pricer.prices, self.deadline / self.least)
        if not len(values):
            return None
        if only is None:
            return self._sweep(values, cells_of(values))
        cells = np.flatnonzero(np.isin(values, list(only)))
        return self._sweep(values, np.stack([cells, cells], axis=1))

    def _sweep(self, values: Array, cells: NDArray[np.intp]) -> list[Column] | None:
        excess = np.ones(len(cells))
        while len(cells):
            # Where a proof seems least likely, it is soonest known to fail.
            order = np.argsort(-excess, kind="stable")
            now, cells, excess = cells[order[:_AT_ONCE]], cells[order], excess[order]
            self.looked_at += len(now)
            if self.looked_at > _MOST:
                return []
            low, cap = values[now[:, 0]], values[now[:, 1]]
            more = self._excess(low * (1 - _EPS), cap)
            now, more = now[more > 0], more[more > 0]
            last = now[now[:, 0] == now[:, 1], 0]
            if len(last):
                self.failed = values[last]
                return [*self.found, *self._behind(self.failed)]
            cells = np.concatenate([halves(values, now), cells[_AT_ONCE:]])
            excess = np.concatenate([more, more, excess[_AT_ONCE:]])
        return None

    def _excess(self, low: Array, cap: Array) -> Array:
        """[cells] by which share, at most, a pipeline whose slowest stage takes from `low` to `cap`
        seconds may deliver more than it costs; 0 where none does."""
        counts = np.minimum(np.floor(self.deadline / low * (1 + _EPS)), self.most)
        result = self._few(low, cap, counts)
        rest = np.flatnonzero((result == 0) & (counts >= self.least))
        result[rest] = self._many(low[rest], cap[rest], counts[rest])
        return np.where(counts >= self.least, result, 0.0)

    def _few(self, low: Array, cap: Array, counts: Array) -> Array:
        """[cells] what m ≤ S leave open: all that is in flight may be m micro-batches."""
        result = np.zeros(len(cap))
        cell, first, last = np.arange(len(cap)), np.full(len(cap), self.least), counts.astype(int)
        while len(cell):
            first, last, excess = self._few_left(low[cell], cap[cell], first, last)
            narrow = cap[cell] <= low[cell] * _NARROW
            for at in np.flatnonzero((first == last) & (cap[cell] <= low[cell] * _SINGLE)):
                if not self._few_within(low[cell[at]], cap[cell[at]], int(first[at])):
                    first[at] += 1
            left = (first == last) | ((first < last) & ~narrow)
            np.maximum.at(result, cell[left], excess[left])
            kept = (first < last) & (result[cell] == 0)
            cell, first, last = cell[kept], first[kept], last[kept]
            middle = (first + last) // 2
            first, last = np.concatenate([first, middle + 1]), np.concatenate([middle, last])
            cell = np.concatenate([cell, cell])
        return result

    def _few_within(self, low: float, cap: float, count: int) -> bool:
        """Whether some pipeline of m stages or more may be worth it."""
        depth = np.arange(count, len(self.pricer.prices.runs.kind) + 1)
        m = np.full(len(depth), count)
        hidden = (1 - self._larger) * low
        room = self.deadline - (count - 1) * low + (depth - 1) * hidden
        return bool(self._within(low, cap, depth, m, room, 0.0, hidden, count).any())

    def _few_left(
        self, low: Array, cap: Array, first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """The first and the last m that are open of those given, and by which share pipelines may
        deliver more there; the first beyond the last where none is."""
        first, last, excess = first.copy(), last.copy(), np.zeros(len(low))
        cells, narrow = np.flatnonzero(first <= last), cap <= low * _NARROW
        while len(cells):
            plain = self._plain(cap[cells], self.size * last[cells], first[cells])
            depths = np.arange(1, len(plain) + 1)[:, None]
            most = np.minimum(depths, last[cells])
            need = np.maximum(np.floor(plain / self.size) + 1, first[cells])
            least = np.where(need <= most, need, MANY).min(axis=0).astype(int)
            last[cells] = np.where(need <= most, most, 0).max(axis=0)
            higher = (least > first[cells]) & (least <= last[cells])
            first[cells] = least
            done = cells[~higher & (least <= last[cells])]
            excess[cells] = (1 - plain / (self.size * np.maximum(most, 1))).max(axis=0)
            timed = done[cap[done] <= low[done] * _WIDE]
            for ways in (_FEW_FIRST, None):
                if not len(timed):
                    break
                ways = ways or (_FEW if narrow[timed].all() else _FEW_ROUGH)
                found = plain[:, np.isin(cells, timed)]
                share = self._few_timed(low, cap, first, last, timed, found, ways)
                excess[timed] = np.minimum(excess[timed], share)
                timed = timed[first[timed] <= last[timed]]
            cells = cells[higher]
        return first, last, excess

    def _few_timed(
        self, low: Array, cap: Array, first: NDArray[np.int64], last: NDArray[np.int64],
        cells: NDArray[np.intp], plain: Array, ways: tuple[tuple[float, ...], ...],
    ) -> Array:  # fmt: skip
        """Narrows the m that are open by what a pipeline costs that is in time; `excess`."""
        excess = np.zeros(len(cells))
        theta, twice, late, toll = np.array(ways).T
        lanes, turning = len(theta), twice < 0
        worth = self.size / low[cells, None] * theta
        weight, cap_of = worth.ravel(), np.repeat(cap[cells], lanes)
        # With one of its passes hidden.
        hidden = toll * (1 - self._larger) * low[cells, None]
        twice = np.where(turning, -1, np.floor(twice * (first[cells, None] - 1)))
        # The micro-batches that the slowest stage waits for, and how long for each.
        wait = np.where(turning, 1.0, self._larger) * low[cells, None]
        skipped = np.where(turning, np.where(late < 0, -1, 0), twice)
        asked = Lanes(
            cap_of, weight, weight, weight, np.repeat(first[cells], lanes),
            late=(worth * late).ravel(), toll=(worth * hidden).ravel(),
            turn=twice.ravel(), least=np.repeat(low[cells], lanes),
        )  # fmt: skip
        ends = np.stack([first[cells], last[cells]])[:, :, None]
        room = self.deadline - (ends - 1 - skipped) * wait + (len(plain) - 1) * hidden
        room = worth * room
        values = self._prices(asked, (self.size * ends + room).max(axis=0).ravel())
        values = values.reshape(len(values), len(cells), lanes)
        for at, cell in enumerate(cells):
            m = np.arange(first[cell], last[cell] + 1)
            depth, row = np.nonzero(
                (plain[:, at, None] < self.size * m) & (m <= np.arange(1, len(plain) + 1)[:, None])
            )
            found = np.full((len(depth), lanes), np.inf)
            there = depth < len(values)
            found[there] = values[depth[there], at]
            left = (m[row][:, None] - 1 - skipped[at]) * wait[at]
            price = found - worth[at] * (self.deadline - left + depth[:, None] * hidden[at])
            share = 1 - price.max(axis=1) / (self.size * m[row])
            open_ = m[row][share > 0]
            first[cell], last[cell] = (open_.min(), open_.max()) if len(open_) else (1, 0)
            excess[at] = share.max(initial=0.0)
        return excess

    def _plain(self, cap: Array, budget: Array, hold: NDArray[np.int64] | int) -> Array:
        """[depths, cells] least prices, whatever time they take."""
        zero = np.zeros(len(cap))
        return self._prices(Lanes(cap, zero, zero, zero, hold), budget)

    def _many(self, low: Array, cap: Array, counts: Array) -> Array:
        """[cells] what m > S leave open."""
        plain = self._plain(cap, self.size * counts, MANY)
        excess = np.maximum(1 - plain.min(axis=0) / (self.size * counts), _EPS)
        open_: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for cell, count in enumerate(counts.astype(int)):
            need = np.maximum(np.floor(plain[:, cell] / self.size) + 1, self.least)
            depth = np.flatnonzero(np.maximum(need, np.arange(2, len(plain) + 2)) <= count) + 1
            m = np.arange(min(need.min(), count + 1), count + 1)
            which, row = np.nonzero((m >= need[depth - 1, None]) & (m > depth[:, None]))
            open_.append((depth[which], m[row].astype(np.int64)))
        for ways in (_WAYS, _LAST_WAYS):
            for way in ways:
                left = [len(m) * (cap[c] <= low[c] * way.widest) for c, (_, m) in enumerate(open_)]
                cells = np.flatnonzero(left)
                if len(cells):
                    excess[cells] = self._outlast(way, low, cap, cells, open_)
            widest = _NARROW if ways is _WAYS else _SINGLE
            for cell, pairs in enumerate(open_):
                if 0 < len(pairs[0]) <= _PAIRS and cap[cell] <= low[cell] * widest:
                    often = ways is _LAST_WAYS
                    open_[cell] = self._many_within(low[cell], cap[cell], *pairs, often=often)
        return np.where([len(m) > 0 for _, m in open_], excess, 0.0)

    def _many_within(
        self, low: float, cap: float, depth: NDArray[np.int64], m: NDArray[np.int64], *, often: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The depths and counts that labels leave.

        Args:
            often: whether late stages are passed as often as there is time, not twice.
        """
        more = int(((m - 1) // depth).min()) if often else 1
        # Each late stage is passed once while the slowest does not wait.
        room = self.deadline - (m - 1 - more * depth) * low
        kept = self._within(low, cap, depth, m, room, float(more), more * low, MANY)
        return depth[kept], m[kept]

    def _within(
        self, low: float, cap: float, depth: NDArray[np.int64], m: NDArray[np.int64], room: Array,
        late: float, toll: float, hold: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """[pairs] whether pipelines of a depth for m micro-batches may cost less than these.

        Args:
            room: [pairs] seconds for its stages.
            late: further passes of the late stages.
            toll: seconds that each of the others takes longer.
        """
        worth = self.size / low * np.array(_LABELLED)
        each = np.full(len(worth), low)
        lanes = Lanes(
            np.full(len(worth), cap), worth, worth, worth, hold, late=late * worth,
            toll=toll * worth, turn=np.full(len(worth), -1), least=each,
        )  # fmt: skip
        price = self.size * m - self.each
        budget = (price[:, None] + worth * room[:, None]).max(axis=0)
        solution = self.pricer.solve(self.chip_prices, lanes, budget)
        result = np.zeros(len(m), dtype=bool)
        for pair in range(len(m)):
            if result[:pair].any():
                result[pair:] = True  # not looked at
                break
            result[pair], columns = cheap_and_quick(
                solution, int(depth[pair]), float(price[pair]), float(room[pair]),
                returns=late > 0,
            )  # fmt: skip
            self.found.update((column, self.size * int(m[pair])) for column in columns)
        return result

    def _outlast(
        self, way: _Way, low: Array, cap: Array, cells: NDArray[np.intp],
        open_: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> Array:  # fmt: skip
        """Leaves the depths and counts at which a pipeline may deliver more than it costs; by which
        share it may."""
        excess = np.zeros(len(cells))
        # The most times that stages may be passed.
        most = np.array([((open_[c][1] - 1) // open_[c][0]).max() + 1 for c in cells])
        times = np.floor(2 * (most[:, None] / 2) ** np.array(way.often))
        times = np.repeat(times, len(way.shares), axis=1)
        lanes = times.shape[1]
        worth = self.size / low[cells, None] * np.tile(way.shares, lanes // len(way.shares))
        room, budget = [], np.zeros((len(cells), lanes))
        for at, cell in enumerate(cells):
            depth, m = (x[:, None] for x in open_[cell])
            k = np.minimum((m - 1) // depth + 1, times[at])
            if way.turning:
                # Of the late stages, all but the early ones, each is passed while it waits.
                left = self.deadline - (m - 1 - (k - 1) * depth) * low[cell]
                left = np.where(k == times[at], left, np.inf)
            else:
                # What a stage is worth to a lane is made for its own number of passes.
                left = (self.deadline - (m - 1 - (k - 1) * depth) * low[cell]) / k * times[at]
            room.append(worth[at] * left)
            needed = np.where(np.isfinite(room[-1]), self.size * m + room[-1], 0.0)
            budget[at] = needed.max(axis=0)
        once, cap_of = worth.ravel(), np.repeat(cap[cells], lanes)
        more = once * (times.ravel() - 1)
        if way.turning:
            asked = Lanes(
                cap_of, once, once, once, MANY, late=more,
                toll=more * np.repeat(low[cells], lanes), turn=np.full(len(once), -1),
                least=np.repeat(low[cells], lanes),
            )  # fmt: skip
        else:
            asked = Lanes(cap_of, once + more, once + more, once, MANY)
        values = self._prices(asked, budget.ravel())
        values = values.reshape(len(values), len(cells), lanes)
        for at, cell in enumerate(cells):
            depth, m = open_[cell]
            found = np.full((len(depth), lanes), np.inf)
            there = depth <= len(values)
            found[there] = values[depth[there] - 1, at]
            known = np.isfinite(room[at])
            price = np.where(known, found - np.where(known, room[at], 0.0), -np.inf)
            share = 1 - price.max(axis=1) / (self.size * m)
            open_[cell] = depth[share > 0], m[share > 0]
            excess[at] = share.max(initial=0.0)
        return excess

    def _prices(self, lanes: Lanes, budget: Array) -> Array:
        """[depths, lanes] least prices, one depth at least."""
        budget = budget - self.each
        values = self.pricer.solve(self.chip_prices, lanes, budget, columns=False).values
        return values + self.each if len(values) else np.full((1, len(lanes)), np.inf)

    def _behind(self, cap: Array) -> list[Column]:
        """The cheapest pipelines of every depth with stages no slower than these."""
        shares = (0.0, *_FINE[::2])
        caps, theta = np.repeat(cap, len(shares)), np.tile(shares, len(cap))
        worth = self.size / caps
        count = np.minimum(self.deadline / caps, self.most)
        lanes = Lanes(caps, 2 * worth * theta, 2 * worth * theta, worth * theta, MANY)
        budget = self.size * count + lanes.stage * self.deadline / 2 - self.each
        solution = self.pricer.solve(self.chip_prices, lanes, budget)
        found: dict[Column, None] = {}
        for lane in range(len(caps)):
            # What is not paid for by m micro-batches of the lane's own pace is not looked at.
            depths = np.flatnonzero(solution.values[:, lane] <= budget[lane])
            for depth in depths[np.argsort(solution.values[depths, lane])][:_BEHIND]:
                found.setdefault(solution.column(int(depth) + 1, lane))
        return list(found)
