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

from pluribus.plan.columns import Column
from pluribus.plan.generate import Generator
from pluribus.plan.prices import Hops
from pluribus.plan.pricing import Pricer
from pluribus.plan.proof import Proof
from pluribus.plan.sums import least_tails

_SAFE = 1e-7  # relative room for rounding errors
# Of the least step of mixes of fractions, tried in turn.
_SHARES = (
    0.999, 0.998, 0.997, 0.996, 0.995, 0.993, 0.991, 0.985, 0.98, 0.97, 0.96, 0.94, 0.9, 0.85,
)  # fmt: skip
_ROUNDS = 24  # proofs tried in all


@dataclass(eq=False)
class Bound:
    """Proofs in the setting of a generator, whose columns they begin with."""

    generator: Generator
    # By micro-batch size, the seconds of slowest stages at which a proof is likely to fail.
    _doubtful: dict[int, dict[float, None]] = field(default_factory=dict)

    @cached_property
    def _alone(self) -> dict[int, Pricer]:
        """By micro-batch size: of a pipeline that has the whole batch, and so no sums."""
        result = {}
        for size, pricer in self.generator.pricers.items():
            setting, prices = self.generator.setting, pricer.prices
            hops = Hops.of(setting, prices.kinds, self.generator.pools, size, near=True)
            result[size] = Pricer(prices, hops, pricer.pools, prices.update)
        return result

    @cached_property
    def _among(self) -> dict[int, Pricer]:
        """By micro-batch size: of a pipeline beside others."""
        setting = self.generator.setting
        return {
            size: replace(pricer, tails=least_tails(setting, pricer.prices))
            for size, pricer in self._alone.items()
        }

    @cached_property
    def floor(self) -> Generator:
        """Columns with times that no plan goes below."""
        generator = self.generator
        floor = Generator(
            generator.setting, generator.pools, generator.available, estimates_sums=False
        )
        floor.pricers.update(self._among)
        for column in generator.columns:
            floor.add(column)
        return floor

    @cached_property
    def seconds(self) -> float:
        """A step that no plan goes below; infinite where nothing fits."""
        floor = self.floor
        deadline, share = floor.generate(), 0
        if not np.isfinite(deadline):
            return np.inf
        ideal = floor.ideal_seconds
        for column, times in zip(floor.columns, floor.mix(deadline).uses, strict=True):
            if times > 0:
                slowest = floor.pace(column).slowest
                self._doubtful.setdefault(column.micro_batch_size, {})[slowest] = None
        for _ in range(_ROUNDS):
            share = self._first_to_try(deadline, share)
            if share == len(_SHARES) or deadline * _SHARES[share] <= ideal:
                break
            open_columns = self.too_short(deadline * _SHARES[share])
            if open_columns is None:
                return deadline * _SHARES[share]
            known = len(floor.columns)
            for column in open_columns:
                floor.add(column)
            if len(floor.columns) > known:
                after = floor.deadline(ideal)
                if after < deadline:
                    deadline = after
                    continue
            share += 1
        return ideal

    def _first_to_try(self, deadline: float, share: int) -> int:
        """The first of `_SHARES` from one on at which a proof does not fail where it is likely
        to."""
        low, high = share, len(_SHARES)
        while low < high:
            middle = min((low + high) // 2, low + 3)
            if self.too_short(deadline * _SHARES[middle], doubtful=True) is None:
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
        worth = floor.chip_prices(deadline)
        total = float(worth @ floor.available)
        chip_prices = worth * (floor.batch * (1 - _SAFE) / total)
        for size, pricer in self._among.items():
            most, likely = floor.batch // size, self._doubtful.setdefault(size, {})
            alone = Proof(self._alone[size], chip_prices, deadline, most, most)
            among = Proof(pricer, chip_prices, deadline, 1, most)
            for proof in (alone, among):
                failed = proof.run(likely) if doubtful else proof.run()
                if failed is not None:
                    likely.update(dict.fromkeys(proof.failed.tolist()))
                    cost = chip_prices @ floor.chips_of(failed)
                    better = floor.delivered(failed, deadline) > cost
                    return [c for c, found in zip(failed, better, strict=True) if found]
        return None
