"""Labels against every pipeline there is: none that is cheap and quick is missed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.labels import cheap_and_quick
from pluribus.plan.prices import MANY
from pluribus.plan.pricing import Lanes, Pricer

from .test_pricing import random_pricer

_MOST = 6000


def every_pipeline(pricer: Pricer, depth: int) -> Iterator[tuple[list[int], list[int]]]:
    """(kinds, runs) of all pipelines of a depth."""
    kind = pricer.prices.runs.kind
    layers = len(kind)
    for cuts in itertools.combinations(range(1, layers), depth - 1):
        spans = list(itertools.pairwise([0, *cuts, layers]))
        runs = [int(kind[a, b - a]) for a, b in spans]
        fits = [np.flatnonzero(pricer.prices.most_held[:, run] > 0).tolist() for run in runs]
        for rows in itertools.product(*fits):
            yield list(rows), runs


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**20), depth=st.integers(1, 3), twice=st.booleans())
def test_none_that_is_cheap_and_quick_is_missed(seed: int, depth: int, twice: bool) -> None:
    rng = np.random.default_rng(seed)
    pricer = random_pricer(rng)
    prices, layers = pricer.prices, len(pricer.prices.runs.kind)
    if layers > 6 or depth > layers:
        return
    chip_prices = rng.uniform(0.1, 2, len(pricer.pools))
    cost = chip_prices[pricer.pool_of] * pricer.chips
    cap = float(rng.choice(prices.seconds.ravel()))
    least = cap * float(rng.uniform(0.5, 1))
    late, toll, hold = (1.0, least, MANY) if twice else (0.0, least / 3, int(rng.integers(1, 4)))
    pipelines = list(itertools.islice(every_pipeline(pricer, depth), _MOST))
    if len(pipelines) == _MOST:
        return
    found = []
    for rows, runs in pipelines:
        seconds = prices.seconds[rows, runs]
        held = prices.most_held[rows, runs] >= np.minimum(np.arange(depth, 0, -1), hold)
        slow = np.flatnonzero(seconds >= least)
        if not held.all() or (seconds > cap).any() or not len(slow):
            continue
        turn = slow[0] if twice else slow[-1]
        passes = np.where(np.arange(depth) >= turn, late + 1, 1.0)
        hops = pricer.hops.seconds[pricer.hops.senders[rows[:-1]], pricer.pool_of[rows[1:]]]
        early = np.concatenate([[0.0], np.cumsum(prices.backward[rows, runs][:-1] + hops / 2)])
        tails = pricer.tails[rows, runs] - early
        takes = passes @ seconds + passes[:-1] @ hops + toll * turn
        takes += max(tails if twice else tails[: turn + 1])
        found.append((float(cost[rows].sum()), float(takes), rows, runs))
    if not found:
        return
    price, time, *_ = found[int(rng.integers(len(found)))]
    price *= float(rng.choice([0.999, 1.001, 1.2]))
    time *= float(rng.choice([0.999, 1.001, 1.2]))
    worth = np.array([0.02, 0.5, 1.0, 3.0]) * price / time
    lanes = Lanes(
        np.full(4, cap), worth, worth, worth, hold, late=late * worth, toll=toll * worth,
        turn=np.full(4, -1), least=np.full(4, least),
    )  # fmt: skip
    solution = pricer.solve(chip_prices, lanes, price + worth * time)
    answer, columns = cheap_and_quick(solution, depth, price, time, returns=twice)
    assert answer == any(p < price and t <= time for p, t, *_ in found)
    for column in columns:
        rows = [prices.kinds.index(stage.kind) for stage in column.stages]
        runs = [
            int(prices.runs.kind[s.layers[0], s.layers[1] - s.layers[0]]) for s in column.stages
        ]
        mine = [x for x in found if x[2:] == (rows, runs)]
        assert mine[0][0] < price
        assert mine[0][1] <= time * (1 + 1e-9)
        assert mine[0][0] == pytest.approx(cost[rows].sum())
