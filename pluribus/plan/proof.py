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

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.caps import cells_of, halves, stage_seconds
from pluribus.plan.columns import Column
from pluribus.plan.prices import MANY, Array
from pluribus.plan.pricing import Lanes
from pluribus.plan.proof_few import excess_of_few
from pluribus.plan.proof_many import excess_of_many
from pluribus.plan.proof_question import EPS, FINE, Question

_AT_ONCE = 16  # cells looked at together
_MOST = 1200  # cells beyond which a proof is given up
_BEHIND = 3  # pipelines looked at for each price of time where a proof fails


@dataclass(eq=False)
class Proof(Question):
    """A proof at one deadline.

    Attributes:
        failed: seconds of the slowest stages at which the last run failed.
        looked_at: cells of the last run.
    """

    failed: Array = field(default_factory=lambda: np.zeros(0))
    looked_at: int = 0

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
            more = self._excess(low * (1 - EPS), cap)
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
        counts = np.minimum(np.floor(self.deadline / low * (1 + EPS)), self.most)
        result = excess_of_few(self, low, cap, counts)
        rest = np.flatnonzero((result == 0) & (counts >= self.least))
        result[rest] = excess_of_many(self, low[rest], cap[rest], counts[rest])
        return np.where(counts >= self.least, result, 0.0)

    def _behind(self, cap: Array) -> list[Column]:
        """The cheapest pipelines of every depth with stages no slower than these."""
        shares = (0.0, *FINE[::2])
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
