"""What a proof asks of the dynamic program: the cheapest pipelines for m micro-batches in time.

How long m micro-batches take at least: a path through the 1F1B schedule follows one micro-batch to
the last stage and back, to any stage; the next one that this stage then takes, S − s later, to the
last stage and back again, and so on. It passes stage s and its message c_s times, later stages no
less often than earlier ones, and skips Σ(c − 1) < m micro-batches. The others it may wait for on
the slowest stage: a step takes Σ c e + (m − 1 − Σ(c − 1)) τ, where the slowest stage is passed
twice at least, and with the longer of its two passes for τ otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.columns import Column
from pluribus.plan.labels import cheap_and_quick
from pluribus.plan.prices import Array
from pluribus.plan.pricing import Lanes, Pricer

NARROW = 1.004  # a cell's values within this ratio are looked at with many prices of time
EPS = 1e-12
SINGLE = 1 + 4 * EPS  # a cell of one value
# Of what a second is worth at the pace of the slowest stage.
FINE = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.15, 1.4, 1.8, 2.5)
_LABELLED = (0.02, 0.3, 0.6, 0.9, 1.2, 1.6, 2.2)  # the same of lanes that guide labels


@dataclass(eq=False)
class Question:
    """A deadline and prices at which no pipeline shall deliver more than it costs.

    Attributes:
        chip_prices: [pools] sequences that a chip has to deliver.
        least, most: micro-batches of a pipeline.
        each: sequences that a pipeline has to deliver beside those of its chips.
        found: pipelines that may deliver so many sequences for all that labels know.
    """

    pricer: Pricer
    chip_prices: Array
    deadline: float
    least: int
    most: int
    each: float = 0.0
    found: dict[Column, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.pricer.prices.micro_batch_size

    @cached_property
    def larger(self) -> float:
        """The larger of a stage's two passes is at least this share of both."""
        prices = self.pricer.prices
        return float((np.maximum(prices.forward, prices.backward) / prices.seconds).min())

    def prices(self, lanes: Lanes, budget: Array) -> Array:
        """[depths, lanes] least prices, one depth at least."""
        budget = budget - self.each
        values = self.pricer.solve(self.chip_prices, lanes, budget, columns=False).values
        return values + self.each if len(values) else np.full((1, len(lanes)), np.inf)

    def plain(self, cap: Array, budget: Array, hold: NDArray[np.int64] | int) -> Array:
        """[depths, cells] least prices, whatever time they take."""
        zero = np.zeros(len(cap))
        return self.prices(Lanes(cap, zero, zero, zero, hold), budget)

    def within(
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
