"""A step that no plan can go below.

Prices λ of chips prove a bound: if no pipeline can deliver by a deadline T more sequences than its
chips cost, then no plan delivers more than all chips cost, Σ λ N (LP duality; Farley 1990). With λ
scaled to cost just less than the global batch, T is too short for any plan. Times here are those
that no plan goes below: the quickest messages and the least gradient sums (`Pricer` of the bound).

The prices come from column generation with these times. Where a proof fails, the pipeline it fails
at is priced exactly: if it does deliver more, it becomes a column, and the prices change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pluribus.plan.caps import best_columns
from pluribus.plan.columns import Column
from pluribus.plan.generate import Generator
from pluribus.plan.least_sums import least_tails
from pluribus.plan.master import most_sequences
from pluribus.plan.prices import MANY, Array, Hops
from pluribus.plan.pricing import Lanes, Pricer
from pluribus.plan.proof import Proof

_SAFE = 1e-7  # relative room for rounding errors
# Of the least step of mixes of fractions, tried in turn.
_SHARES = (
    0.9985, 0.997, 0.9955, 0.994, 0.992, 0.99, 0.987, 0.984, 0.98, 0.975, 0.97, 0.964, 0.957, 0.95,
    0.94, 0.93, 0.915, 0.9, 0.88, 0.85, 0.82, 0.79, 0.73,
)  # fmt: skip
# Where a best mix of fractions has so few pipelines, a share of one weighs.
_FEW, _WHOLE = 3, 0.02
_PARTS = (0.3, 0.7)  # of what is delivered, tried as the price of pipelines
_SKEWS, _DEPTHS = (0.93, 1.07), 6  # of a pool's price, and depths of each pipeline
# Of so many of the pipelines of a best mix of fractions, and so many at most, and of fewer proofs
# are tried apart, where the sums of many make a step longer by this.
_MANY, _MOST_MANY, _LONGER = 0.6, 24, 1.002
_FAR = 1.25  # of the least step of mixes of any number of pipelines: not looked beyond
_PASSES = (1.0, 4.0, 16.0, 64.0)  # of a slowest stage in a step, where pipelines have to fit
_ROUNDS = 24  # proofs tried in all
_LESS = 2e-4  # of a step: columns that save less do not change where proofs are tried
_PATIENCE = 700  # cells of proofs beyond which a bound that holds will do
_TRIES = 4  # with new columns, where one is likely to fail


@dataclass(eq=False)
class Bound:
    """Proofs in the setting of a generator, whose columns they begin with.

    Attributes:
        pipelines: the least and the most of the plans it is about; any number by default.
    """

    generator: Generator
    pipelines: tuple[float, float] | None = None
    # By micro-batch size, the seconds of slowest stages at which a proof is likely to fail.
    _doubtful: dict[int, dict[float, None]] = field(default_factory=dict)
    # Sequences/s that proofs have to allow for, where they failed.
    _unproven: dict[Column, float] = field(default_factory=dict)
    _known: tuple[int, float] = (0, 0.0)
    _looked_at: int = 0  # cells of proofs so far

    @cached_property
    def _alone(self) -> dict[int, Pricer]:
        """By micro-batch size: of a pipeline that has the whole batch, and so no sums."""
        result = {}
        for size, pricer in self.generator.pricers.items():
            setting, prices = self.generator.setting, pricer.prices
            hops = Hops.of(setting, prices.kinds, self.generator.pools, size, "near")
            result[size] = Pricer(prices, hops, pricer.pools, prices.update)
        return result

    @cached_property
    def _among(self) -> dict[int, Pricer]:
        """By micro-batch size: of a pipeline beside others."""
        setting, least = self.generator.setting, int(max(2, (self.pipelines or (2,))[0]))
        return {
            size: replace(pricer, tails=least_tails(setting, pricer.prices, least))
            for size, pricer in self._alone.items()
        }

    @cached_property
    def floor(self) -> Generator:
        """Columns with times that no plan goes below."""
        generator = self.generator
        floor = Generator(
            generator.setting, generator.pools, generator.available,
            estimates_sums=False, pipelines=self.pipelines,
        )  # fmt: skip
        floor.pricers.update(self._alone if self._only_one else self._among)
        for column in generator.columns:
            floor.add(column)
        return floor

    @property
    def _only_one(self) -> bool:
        return self.pipelines is not None and self.pipelines[1] <= 1

    @cached_property
    def seconds(self) -> float:
        """A step that no plan goes below; infinite where nothing fits."""
        floor = self.floor
        deadline = floor.generate()
        if not np.isfinite(deadline):
            return deadline
        number = float(floor.mix(deadline).uses.sum())
        below = np.floor(number)
        if number > _FEW:
            return self._apart(deadline, number)
        if min(number - below, below + 1 - number) < _WHOLE:
            return self._proven(deadline)
        # Pipelines are whole: there is at least one more than that, or there are no more.
        chip_prices, _ = floor.prices(deadline)
        least = _FAR * deadline
        for pipelines in ((below + 1, np.inf), (0.0, below)):
            if pipelines[1] > 0:
                branch = Bound(floor, pipelines)
                for part in _PARTS:
                    branch._begin(deadline, chip_prices, part)
                soonest = branch.floor.generate(least)
                if soonest < least:
                    # For a search to choose from: whole pipelines have to fill the chips.
                    prices, each = branch.floor.prices(soonest)
                    branch.floor.price(1.01 * soonest, prices, _DEPTHS, each, _SKEWS)
                least = branch._proven(soonest, least)
                for column in branch.floor.columns:
                    floor.add(column)
        return least if least > deadline else max(least, self._proven(deadline))

    def _apart(self, deadline: float, number: float) -> float:
        """Proves apart that many pipelines have long sums, and that few do not deliver enough.

        Args:
            number: of pipelines in the best mix of fractions.
        """
        floor, least = self.floor, int(min(_MANY * number, _MOST_MANY))
        many, few = Bound(floor, (least, np.inf)), Bound(floor, (0.0, least - 1))
        soonest = many.floor.generate()
        if soonest < deadline * _LONGER:
            for column in many.floor.columns:
                floor.add(column)
            return self._proven(deadline)
        proven = many._proven(soonest)
        proven = few._proven(few.floor.generate(proven), proven)
        for branch in (many, few):
            for column in branch.floor.columns:
                floor.add(column)
        return proven

    def _begin(self, deadline: float, chip_prices: Array, part: float) -> None:
        """Finds columns where pipelines cost something, or are paid for, whatever their chips.

        Args:
            chip_prices: with pipelines free.
            part: of all that is delivered, what the pipelines cost or are paid.
        """
        assert self.pipelines is not None
        few = self.pipelines[1] < np.inf
        each = self.floor.batch / (self.pipelines[1] if few else -self.pipelines[0]) * part
        worth = chip_prices * (self.floor.batch / self.floor.total(chip_prices, 0.0))
        self.floor.price(1.03 * deadline, worth * (1 - part if few else 1 + part), each=each)

    def _proven(self, deadline: float, most: float = np.inf) -> float:
        """A step that none of these plans goes below.

        Args:
            deadline: the least step of mixes of the columns.
            most: longer steps are not looked at.
        """
        floor, share = self.floor, 0
        if floor.mix(deadline).total == 0 and self._fit(deadline):
            deadline = floor.generate(most)
        if deadline >= most and self.too_short(most) is None:
            return most
        ideal = floor.ideal_seconds
        for column, times in zip(floor.columns, floor.mix(deadline).uses, strict=True):
            if times > 0:
                slowest = floor.pace(column).slowest
                self._doubtful.setdefault(column.micro_batch_size, {})[slowest] = None
        fails = 0
        for _ in range(_ROUNDS):
            share = self._first_to_try(deadline, share)
            after = floor.deadline(ideal, most=deadline)
            if after < deadline * (1 - _LESS):
                deadline, share = after, fails
                continue
            # One further than seems to do, as what fails is lost; and that one, if it goes fast.
            last = min(share + 1, len(_SHARES) - 1)
            if share >= len(_SHARES) or deadline * _SHARES[last] <= ideal:
                break
            failed = self.too_short(deadline * _SHARES[last])
            if failed is None:
                quick = self._looked_at < _PATIENCE
                if quick and self.too_short(deadline * _SHARES[share]) is None:
                    last = share
                return deadline * _SHARES[last]
            # Every further proof is long, and finds less.
            fails += 1
            share += fails - self._learn(failed)
        return ideal

    def _fit(self, deadline: float) -> bool:
        """Finds pipelines so small that as many as there have to be fit; whether they do."""
        floor, zero = self.floor, np.zeros(len(_PASSES))
        for _ in range(_ROUNDS):
            ones = np.ones(len(floor.columns))
            mix = most_sequences(ones, floor.chips_of(floor.columns), floor.available)
            if self.pipelines is None or mix is None or mix.total >= self.pipelines[0]:
                return True
            known = len(floor.columns)
            for pricer in floor.pricers.values():
                lanes = Lanes(deadline / np.array(_PASSES), zero, zero, zero, MANY)
                solution = pricer.solve(mix.chip_values, lanes, zero + 1)
                for column in best_columns(solution, 1):
                    floor.add(column)
            if len(floor.columns) == known:
                break
        return False

    def _learn(self, columns: Sequence[Column]) -> bool:
        """Whether any of these columns is new, or more of what a proof has to allow for."""
        known = self._known
        for column in columns:
            self.floor.add(column)
        self._known = len(self.floor.columns), sum(self._unproven.values())
        return self._known != known

    def _prices(self, deadline: float) -> tuple[Array, float]:
        """The prices of the columns' best mix, among them those that proofs have to allow for,
        though their steps may take longer."""
        floor, columns = self.floor, [*self.floor.columns, *self._unproven]
        rates = np.array(list(self._unproven.values()))
        values = np.concatenate([floor.delivered(floor.columns, deadline), rates * deadline])
        mix = most_sequences(
            values, floor.chips_of(columns), floor.available, pipelines=floor.pipelines
        )
        if mix is None:
            return floor.prices(deadline)
        return np.maximum(mix.chip_values, 1e-3 * deadline * floor.speeds), mix.pipeline_value

    def _first_to_try(self, deadline: float, share: int) -> int:
        """The first of `_SHARES` from one on at which a proof does not fail where it is likely to,
        or one at which the columns learned there make a mix."""
        low, high = share, len(_SHARES)
        while low < high:
            middle = min((low + high) // 2, low + 3)
            sooner = deadline * _SHARES[middle]
            for _ in range(_TRIES):
                failed = self.too_short(sooner, doubtful=True)
                if failed is None or not self._learn(failed):
                    break
                if self.floor.mix(sooner).total >= self.floor.batch:
                    return middle
            if failed is None:
                high = middle
            else:
                low = middle + 1
        return low

    def too_short(self, deadline: float, *, doubtful: bool = False) -> Sequence[Column] | None:
        """None if it is proven that no plan ends by a deadline; else pipelines that deliver more
        than their chips cost, if any are known.

        Args:
            doubtful: look only where a proof is likely to fail; None then proves nothing.
        """
        floor = self.floor
        chip_prices, each = self._prices(deadline)
        total = floor.total(chip_prices, each)
        if not 0 < total < floor.batch:
            return []
        scale = floor.batch * (1 - _SAFE) / total
        chip_prices, each = chip_prices * scale, each * scale
        for size, pricer in self._among.items():
            most, likely = floor.batch // size, self._doubtful.setdefault(size, {})
            proofs = []
            if self.pipelines is None or self.pipelines[0] <= 1:
                proofs.append(Proof(self._alone[size], chip_prices, deadline, most, most, each))
            if not self._only_one:
                proofs.append(Proof(pricer, chip_prices, deadline, 1, most, each))
            for proof in proofs:
                failed = proof.run(likely) if doubtful else proof.run()
                self._looked_at += proof.looked_at
                if failed is not None:
                    for column, delivered in proof.found.items():
                        self._unproven[column] = max(
                            delivered / deadline, self._unproven.get(column, 0.0)
                        )
                    likely.update(dict.fromkeys(proof.failed.tolist()))
                    cost = chip_prices @ floor.chips_of(failed) + each
                    better = floor.delivered(failed, deadline) > cost
                    return [c for c, found in zip(failed, better, strict=True) if found]
        return None
