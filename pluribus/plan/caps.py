"""Which limits on a stage's seconds are worth pricing pipelines for.

A pipeline is as quick as its slowest stage, whose seconds are those of some run of layers on some
kind of stage. A few of these values are far better than their neighbours, those at which unlike
stages end together; a grid misses them. Cells of values are halved, the most promising first, until
single values are left.
"""

from __future__ import annotations

import numpy as np

from pluribus.plan.columns import Column
from pluribus.plan.prices import MANY, Array, Prices
from pluribus.plan.pricing import Lanes, Pricer, Solution

_EPS = 1e-12
_CELLS = 12  # cells to begin with
_AT_ONCE = 12  # cells halved together
_APART = 1.0025  # limits nearer than this ratio find much the same pipelines


def stage_seconds(prices: Prices, most: float) -> Array:
    """The seconds, ascending, that the slowest stage of a pipeline can take.

    Args:
        most: no stage may take longer.
    """
    each = prices.seconds[:, np.flatnonzero(prices.runs.counts.sum(axis=1) == 1)]
    # No pipeline is quicker than its slowest layer on its quickest kind of stage.
    least = float(each.min(axis=0).max()) * (1 - _EPS)
    possible = prices.seconds[prices.most_held > 0]
    return np.unique(possible[(possible >= least) & (possible <= most * (1 + _EPS))])


def cells_of(values: Array) -> np.ndarray:
    """[cells, 2] first and last of a few cells that together hold all values."""
    edges = np.geomspace(values[0], values[-1], _CELLS + 1)[1:-1]
    starts = np.unique([0, *np.minimum(np.searchsorted(values, edges), len(values) - 1)])
    return np.stack([starts, np.append(starts[1:], len(values)) - 1], axis=1)


def halves(values: Array, cells: np.ndarray) -> np.ndarray:
    """Both halves of cells of more than one value."""
    middle = np.searchsorted(values, np.sqrt(values[cells[:, 0]] * values[cells[:, 1]]))
    middle = np.clip(middle, cells[:, 0] + 1, cells[:, 1])
    return np.concatenate(
        [np.stack([cells[:, 0], middle - 1], 1), np.stack([middle, cells[:, 1]], 1)]
    )


def promising(
    pricer: Pricer,
    chip_prices: Array,
    deadline: float,
    batch: int,
    count: int,
    least: float,
    each: float = 0.0,
) -> dict[float, float]:
    """The limits that seem to deliver most, each with what it delivers per sequence that its chips
    have to deliver.

    Args:
        chip_prices: [pools] sequences that a chip has to deliver.
        batch: sequences of a step.
        count: of limits at most.
        least: limits that deliver less are of no interest.
        each: sequences that a pipeline has to deliver beside those of its chips.
    """
    values = stage_seconds(pricer.prices, deadline)
    if not len(values):
        return {}
    size = pricer.prices.micro_batch_size

    def worth(cells: np.ndarray) -> Array:
        """[cells] sequences delivered per sequence's worth of chips; no less than of a half."""
        low, cap = values[cells[:, 0]], values[cells[:, 1]]
        zero = np.zeros(len(cells))
        most = np.minimum(deadline / low, batch / size)
        lanes = Lanes(cap, zero, zero, zero, MANY)
        found = pricer.solve(chip_prices, lanes, size * most / least - each, columns=False).values
        depths = np.arange(1, len(found) + 1)[:, None]
        # What fills and drains a pipeline takes about a slot of each stage.
        through = np.clip(np.floor(deadline / low - depths + 1), 0.0, batch / size)
        return (size * through / np.maximum(found + each, _EPS)).max(axis=0, initial=0.0)

    cells = cells_of(values)
    ratios = worth(cells)
    chosen: dict[float, float] = {}
    while len(chosen) < count and len(cells):
        order = np.argsort(-ratios, kind="stable")
        cells, ratios = cells[order], ratios[order]
        if ratios[0] < least:
            break
        if cells[0, 0] == cells[0, 1]:
            cap = float(values[cells[0, 0]])
            chosen[cap] = float(ratios[0])
            near = (values[cells[:, 0]] * _APART > cap) & (values[cells[:, 1]] < cap * _APART)
            cells, ratios = cells[~near], ratios[~near]
            continue
        wide = np.flatnonzero(cells[:_AT_ONCE, 0] < cells[:_AT_ONCE, 1])
        new = halves(values, cells[wide])
        cells = np.concatenate([np.delete(cells, wide, axis=0), new])
        ratios = np.concatenate([np.delete(ratios, wide), worth(new)])
    return chosen


def best_columns(solution: Solution, depths: int) -> dict[Column, None]:
    """Of each lane the best pipeline; of more depths where a second has its plain worth."""
    result: dict[Column, None] = {}
    plain = solution.lanes.stage * solution.lanes.cap / solution.pricer.prices.micro_batch_size
    for lane, prices in enumerate(solution.values.T):
        for depth in np.argsort(prices, kind="stable")[: depths if 0.5 < plain[lane] < 1.5 else 1]:
            if np.isfinite(prices[depth]):
                result.setdefault(solution.column(int(depth) + 1, lane))
    return result


def lanes_of(caps: Array, size: int) -> Lanes:
    """Per limit: one lane that takes time for nothing and two that value it.

    With τ a stage's limit, a second less of filling and messages makes room for 1/τ micro-batches
    more; a pipeline of stages that are equally quick is filled again and again, as every message
    delays it.
    """
    worth = size / caps
    stage = np.concatenate([0 * worth, worth, 2 * worth])
    once = np.concatenate([0 * worth, worth, worth])
    return Lanes(np.tile(caps, 3), stage, stage, once, MANY)
