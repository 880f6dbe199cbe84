"""Generates columns: prices of chips in, pipelines worth using at those prices out, and again.

Column generation (Ford and Fulkerson 1958, Gilmore and Gomory 1961): the master problem over the
columns known so far prices the chips of each pool; the pricing problem finds pipelines that deliver
more than their chips cost; until there are none. The deadline T moves along: it is set where the
mix of known columns just delivers the global batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress

import numpy as np

from pluribus.plan.caps import best_columns, lanes_of, promising
from pluribus.plan.columns import Column, StageKind
from pluribus.plan.master import Mix, most_sequences
from pluribus.plan.pace import Pace
from pluribus.plan.prices import Array, Hops, Prices, Runs, stage_kinds, usable_pools
from pluribus.plan.pricing import Pricer
from pluribus.plan.roots import first_root
from pluribus.plan.sums import Members, estimated_tails, layer_sums
from pluribus.predict.setting import Setting

_ROUNDS = 8  # of pricing; each pool of columns so far settled in four to seven
_STRIDE = 1.1  # from the deadline of one round to that of the next at most
_SETTLED = 5e-4  # a round that lowers the step by less is the last
_CAPS = 10  # limits on a stage's seconds tried in a round for a micro-batch size
_NEAR = 0.93  # of the best limit's ratio: limits that promise less are not tried
_USED = 0.01  # columns of a mix that are used less often do not count
_EXACT = 1e-4  # of a step: how exactly the least one is found
_USUAL = 1.25  # times the ideal step: for its micro-batches columns are timed exactly
_KEEP = 0.85  # columns that deliver less than this share of what their chips cost are forgotten


@dataclass(eq=False)
class Generator:
    """Columns of one setting over some of its pools.

    Attributes:
        setting: the job on its cluster.
        pools: addresses of the pools whose chips may be used.
        available: [pools] chips of each.
        columns: found so far, in order of finding.
        estimates_sums: whether gradient sums are estimated from the mixes found, not as given.
        pipelines: the least and the most that a mix has; any number by default.
        beside: whether estimates have members of a sum share nodes, not neighbours of a pipeline.
    """

    setting: Setting
    pools: tuple[str, ...]
    available: Array
    columns: list[Column] = field(default_factory=list)
    estimates_sums: bool = True
    pipelines: tuple[float, float] | None = None
    beside: bool = False
    _known: set[Column] = field(default_factory=set)
    _paces: dict[Column, Pace] = field(default_factory=dict)
    _own_tails: dict[Column, float] = field(default_factory=dict)
    _timed: dict[tuple[Column, int], float] = field(default_factory=dict)
    _hops_far: dict[int, Hops] = field(default_factory=dict)  # by micro-batch size
    _layer_sums: Array | None = None  # [L] seconds of each layer's sum in the mix so far
    _drain: Array | None = None  # [L] seconds between the last backward of its stages and of all
    _shared_tail: float = 0.0

    @classmethod
    def of(cls, setting: Setting, pools: Sequence[str] = ()) -> Generator:
        """Over the pools given, or all that have the job's precision."""
        usable = [p for p in usable_pools(setting) if not pools or p.address in pools]
        return cls(
            setting,
            tuple(pool.address for pool in usable),
            np.array([pool.num_chips for pool in usable], dtype=np.float64),
        )

    @property
    def batch(self) -> int:
        """Sequences per step."""
        return self.setting.job.train.global_batch

    @cached_property
    def runs(self) -> Runs:
        return Runs.of(self.setting)

    @cached_property
    def kinds(self) -> tuple[StageKind, ...]:
        pools = [self.setting.pool(address) for address in self.pools]
        return tuple(kind for pool in pools for kind in stage_kinds(self.setting, pool))

    @cached_property
    def pricers(self) -> dict[int, Pricer]:
        """By micro-batch size; those larger than the global batch are of no use."""
        result = {}
        for size in sorted(set(self.setting.job.plan.micro_batch_sizes)):
            if size <= self.batch:
                prices = Prices(self.setting, size, self.kinds, self.runs)
                hops = Hops.of(self.setting, self.kinds, self.pools, size)
                result[size] = Pricer(prices, hops, self.pools, prices.update)
        return result

    @cached_property
    def speeds(self) -> Array:
        """[pools] sequences/s of one chip whose layers and batches could be cut at will; 0 where
        no stage of the pool holds any layer."""
        best = np.zeros(len(self.pools))
        for size, pricer in self.pricers.items():
            prices = pricer.prices
            able = (prices.most_held > 0).any(axis=1)
            whole = prices.runs.kind[0, len(prices.runs.kind)]
            rate = size / (prices.seconds[:, whole] * pricer.chips)
            np.maximum.at(best, pricer.pool_of, np.where(able, rate, 0.0))
        return best

    def take_sums_of(self, uses: Array, columns: Sequence[Column] | None = None) -> list[Column]:
        """Estimates gradient sums anew, from who holds what in a mix.

        The first layer's sum is the last, and every pipeline takes part in it: none is through
        before the one whose sums take longest. So all wait for one tail, and columns that make
        others wait longer are not used.

        Args:
            uses: of the columns.
            columns: to choose from; all that are known by default.

        Returns:
            The columns that go with the tail with which a mix ends soonest.
        """
        columns = self.columns if columns is None else columns
        used = [c for c, n in zip(columns, uses, strict=True) if n > min(_USED, uses.max() / 2)]
        members = Members.of_mix(columns, uses, len(self.setting.model.layers))
        self._layer_sums = layer_sums(self.setting, columns, uses, beside=self.beside)
        self._drain = np.min([self.pace(column).early_layers for column in used], axis=0)
        for size, pricer in self.pricers.items():
            tails = estimated_tails(self.setting, pricer.prices, members, beside=self.beside)
            self.pricers[size] = replace(pricer, tails=tails)
        self._shared_tail = 0.0
        for column in self.columns:
            pace = self.pace(column)
            self._own_tails[column] = self._own_tail(pace)
            self._paces[column] = pace.with_tail(self._own_tails[column])
        tails = sorted({self._own_tails[column] for column in used}, reverse=True)
        ways = [(self.deadline(self.ideal_seconds, self.share(columns, t)), t) for t in tails]
        return self.share(columns, min(ways)[1])

    def _choose_sums(self, deadline: float) -> float:
        """Estimates sums in the way that ends sooner (`beside`); the step of the best mix then."""
        uses, columns, ends = self.mix(deadline).uses, list(self.columns), []
        for self.beside in (False, True):
            self.take_sums_of(uses, columns)
            ends.append(self.deadline(self.ideal_seconds))
        if ends[0] <= ends[1] + self._farther(ends[1]):
            self.beside = False
            self.take_sums_of(uses, columns)
        return ends[self.beside]

    def _farther(self, deadline: float) -> float:
        """Seconds that the best mix takes longer if all its messages leave their nodes."""
        total = more = 0.0
        for column, times in zip(self.columns, self.mix(deadline).uses, strict=True):
            if times > 0:
                pace = self.pace(column)
                count = max(pace.most(deadline), 1)
                sequences = float(times) * column.micro_batch_size * count
                more += sequences * (self._far(pace).seconds(count) - pace.seconds(count))
                total += sequences
        return more / total if total else 0.0

    def _far(self, pace: Pace) -> Pace:
        """The same, all messages leaving their nodes."""
        size = pace.column.micro_batch_size
        if size not in self._hops_far:
            self._hops_far[size] = Hops.of(self.setting, self.kinds, self.pools, size, "far")
        far, (rows, _) = self._hops_far[size], self._rows_and_runs(pace.column)
        hops = far.seconds[far.senders[rows[:-1]], self.pricers[size].pool_of[rows[1:]]]
        return replace(pace, hops=hops)

    @property
    def shared_tail(self) -> float:
        """Seconds between the last backward and the end of the step, of all pipelines."""
        return self._shared_tail

    def share(self, columns: Sequence[Column], tail: float) -> list[Column]:
        """Makes all pipelines wait for a tail; the columns that make none wait longer."""
        self._shared_tail = tail
        for column in columns:
            self._paces[column] = self._paces[column].with_tail(max(self._own_tails[column], tail))
        return [column for column in columns if self._own_tails[column] <= tail]

    def pace(self, column: Column) -> Pace:
        """How fast a column is."""
        if column not in self._paces:
            pace = self._passes(column)
            own = self._own_tails[column] = self._own_tail(pace)
            self._paces[column] = pace.with_tail(max(own, self._shared_tail))
        return self._paces[column]

    def timed_pace(self, column: Column, micro_batches: int) -> Pace:
        """The same, exact for a number of micro-batches, its messages as they usually are; all
        leaving their nodes where gradient peers share those."""
        key, pace = (column, micro_batches), self.pace(column)
        if key not in self._timed:
            self._timed[key] = pace.timed(micro_batches, self.setting.software).stretch
        pace = pace.with_stretch(self._timed[key])
        return self._far(pace) if self.beside else pace

    def _passes(self, column: Column) -> Pace:
        """The pace of a column without its tail."""
        pricer = self.pricers[column.micro_batch_size]
        rows, runs = self._rows_and_runs(column)
        forward, backward = pricer.prices.forward[rows, runs], pricer.prices.backward[rows, runs]
        senders = pricer.hops.senders[rows[:-1]]
        hops = pricer.hops.seconds[senders, pricer.pool_of[rows[1:]]]
        limit = self.batch // column.micro_batch_size
        pace = Pace(column, forward, backward, hops, 0.0, limit)
        if self.estimates_sums:
            usual = max(pace.most(self.ideal_seconds * _USUAL), 1)
            pace = pace.timed(usual, self.setting.software)
        return pace

    def _own_tail(self, pace: Pace) -> float:
        """Seconds that a column's gradient sums and update take after its last backward."""
        column, pricer = pace.column, self.pricers[pace.column.micro_batch_size]
        rows, runs = self._rows_and_runs(column)
        if self._layer_sums is None or self._drain is None:
            # A later stage is through with its passes before the first one is.
            return float((pricer.tails[rows, runs] - pace.early).max())
        # Layer by layer, last ones first, as the stages of the others are through with theirs.
        done = np.concatenate([[0.0], np.cumsum(self._layer_sums)])
        first = [stage.layers[0] for stage in column.stages for _ in range(stage.num_layers)]
        ready = np.minimum(self._drain, pace.early_layers)
        update = pricer.prices.update[rows, runs].max()
        return float((done[1:] - done[first] - ready).max() + update)

    def _rows_and_runs(self, column: Column) -> tuple[list[int], list[int]]:
        """Of each stage its kind and its layers, as `Prices` numbers them."""
        kind = self.runs.kind
        rows = [self._row[stage.kind] for stage in column.stages]
        return rows, [kind[s.layers[0], s.layers[1] - s.layers[0]] for s in column.stages]

    @cached_property
    def _row(self) -> dict[StageKind, int]:
        return {kind: row for row, kind in enumerate(self.kinds)}

    def chips_of(self, columns: Sequence[Column]) -> Array:
        """[pools, columns] chips each takes."""
        table = [[column.chips.get(pool, 0) for column in columns] for pool in self.pools]
        return np.array(table, dtype=np.float64).reshape(len(self.pools), len(columns))

    def delivered(self, columns: Iterable[Column], seconds: float) -> Array:
        """[columns] sequences each is through with by a deadline."""
        return np.array([c.micro_batch_size * self.pace(c).most(seconds) for c in columns])

    def mix(self, seconds: float, columns: Sequence[Column] | None = None) -> Mix:
        """The mix of known columns that delivers most by a deadline."""
        columns = self.columns if columns is None else columns
        values = self.delivered(columns, seconds)
        mix = most_sequences(
            values, self.chips_of(columns), self.available, pipelines=self.pipelines
        )
        if mix is None:  # not so many pipelines
            return Mix(0.0, np.zeros(len(columns)), np.zeros(len(self.pools)))
        return mix

    def deadline(
        self, low: float, columns: Sequence[Column] | None = None, most: float = np.inf
    ) -> float:
        """The least step in which a mix of the known columns delivers the global batch.

        Args:
            low: no step is shorter.
            most: to be returned where none is shorter.
        """
        most = min(most, 1e9 * self.ideal_seconds)
        return first_root(lambda s: self.mix(s, columns).total / self.batch - 1, low, most, _EXACT)

    @property
    def ideal_seconds(self) -> float:
        """No step is shorter: the batch over what all chips do without any loss."""
        return self.batch / float(self.available @ self.speeds)

    def generate(self, most: float = np.inf) -> float:
        """Finds columns; returns the step of their best mix. Infinite where nothing fits.

        Args:
            most: longer steps are of no interest.
        """
        if not self.speeds.any():
            return np.inf
        aim, estimated = self.ideal_seconds * 1.2, not self.estimates_sums
        center, each = aim * self.speeds * 0.85, 0.0
        if not self.columns:
            self.price(aim, center)
        elif self.estimates_sums:
            self._choose_sums(self.deadline(self.ideal_seconds))
            estimated = True
        while not self.columns:
            aim *= 4
            if aim > 1e6 * self.ideal_seconds:
                return np.inf
            self.price(aim, aim * self.speeds * 0.85)
        before = self.deadline(self.ideal_seconds, most=most)
        for _ in range(_ROUNDS):
            aim = min(before, aim * _STRIDE)
            wild = aim < before
            prices, each = self.prices(aim)
            if wild:
                # The first few columns make wild prices: in the middle better ones are found.
                share = center @ self.available
                center = (center + prices * share / max(prices @ self.available, 1e-30)) / 2
                prices = center
            self.price(aim, prices, each=each)
            now = self.deadline(self.ideal_seconds, most=most)
            settled = now > before * (1 - _SETTLED) and not wild
            before = now
            if settled and estimated:
                break
            if settled or not estimated:
                before = self._choose_sums(before)
                estimated = True
        return before

    def prices(self, deadline: float) -> tuple[Array, float]:
        """([pools] what one more chip adds to the best mix, what one more pipeline does). Chips
        that are left over are worth next to nothing, not nothing: a plan may still find a use for
        them."""
        mix = self.mix(deadline)
        return np.maximum(mix.chip_values, 1e-3 * deadline * self.speeds), mix.pipeline_value

    def total(self, chip_prices: Array, each: float) -> float:
        """What all chips have to deliver, and as many pipelines as there may be, or must."""
        if not each or self.pipelines is None:
            return float(chip_prices @ self.available)
        return float(chip_prices @ self.available + each * self.pipelines[1 if each > 0 else 0])

    def price(
        self,
        deadline: float,
        chip_prices: Array,
        depths: int = 1,
        each: float = 0.0,
        skews: Sequence[float] = (),
    ) -> None:
        """Adds pipelines worth using at these prices of chips.

        Whole pipelines have to fill the chips, and need columns of many sizes to choose from.

        Args:
            depths: pipelines of so many depths for each limit on a stage's seconds.
            each: the price of a pipeline, whatever its chips.
            skews: also those with the price of the chips of a pool so many times as high.
        """
        scale = self.batch / max(self.total(chip_prices, each), 1e-30)
        chip_prices, each = chip_prices * scale, each * scale
        others = [
            np.where(np.arange(len(chip_prices)) == pool, skew, 1.0) * chip_prices
            for pool in range(1, len(chip_prices))
            for skew in skews
        ]
        best = 0.0
        for size, pricer in self.pricers.items():
            least = max(_KEEP, best * _NEAR) if self.columns else 1e-3
            found = promising(pricer, chip_prices, deadline, self.batch, _CAPS, least, each)
            best = max(best, *found.values(), 0.0)
            if not found:
                continue
            lanes = lanes_of(np.array(list(found)), size)
            worthwhile = size * (deadline / lanes.cap + 1) * 1.2 - each
            columns = best_columns(pricer.solve(chip_prices, lanes, worthwhile), depths)
            plain = np.arange(len(found), 2 * len(found))
            for prices in others:
                solution = pricer.solve(prices, lanes[plain], worthwhile[plain])
                columns |= best_columns(solution, depths)
            for column in columns:
                most = min(self.pace(column).most(deadline), self.batch / size)
                cost = float(chip_prices @ self.chips_of([column])[:, 0]) + each
                if size * most > _KEEP * max(cost, 1e-30) or not self.columns:
                    self.add(column)

    def take_columns_of(self, other: Generator) -> None:
        """Begins with all that another one knows and there are the chips for."""
        fits = (self.chips_of(other.columns) <= self.available[:, None]).all(axis=0)
        for column in compress(other.columns, fits):
            self.add(column)

    def aside(self) -> Generator:
        """The same columns, for other estimates of their sums; new ones become known to both."""
        other = copy.copy(self)
        other.__dict__["pricers"] = dict(self.pricers)
        other._paces, other._own_tails = dict(self._paces), dict(self._own_tails)
        return other

    def add(self, column: Column) -> None:
        """Makes a column known."""
        if column not in self._known:
            self._known.add(column)
            self.columns.append(column)
