"""The table of the pricing problem: C and numpy agree bit by bit, columns cost their price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.generate import Generator
from pluribus.plan.prices import MANY
from pluribus.plan.pricing import Dearer, Lanes, Pricer, Solution
from pluribus.plan.pricing_table import fill_numpy

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def random_pricer(rng: np.random.Generator) -> Pricer:
    pools = [
        make_pool(
            f"p{i}",
            make_chip(f"c{i}", tflops=float(rng.uniform(5, 40)), gib=float(rng.uniform(2.1, 2.5))),
            nodes=2,
            chips_per_node=int(rng.integers(1, 5)),
        )
        for i in range(int(rng.integers(1, 4)))
    ]
    model = make_model(blocks=int(rng.integers(1, 12)), hidden=256)
    setting = make_setting(pools, model=model, job=make_job(batch=16, sequence=1024))
    generator = Generator.of(setting)
    return generator.pricers[int(rng.integers(1, 3))]


def random_lanes(rng: np.random.Generator, pricer: Pricer, count: int) -> tuple[Lanes, np.ndarray]:
    seconds = pricer.prices.seconds
    cap = rng.uniform(seconds.min(), seconds.max(), count)
    weights = rng.uniform(0, 2, (3, count)) * rng.integers(0, 2, (3, count)) / cap
    hold = rng.choice([1, 2, 3, MANY], count)
    return Lanes(cap, *weights, hold), rng.uniform(0, 60, count)


def with_late_stages(rng: np.random.Generator, lanes: Lanes) -> Lanes:
    turn = np.append(-1, rng.choice([-1, 0, 1, 3], len(lanes) - 1))
    late = np.where(turn == 0, 0.0, rng.uniform(0, 2, len(lanes)) / lanes.cap)
    late = np.where((turn < 0) & (rng.uniform(0, 1, len(lanes)) < 0.4), -lanes.stage, late)
    least = np.where(turn < 0, lanes.cap * rng.uniform(0.4, 1, len(lanes)), 0.0)
    toll = np.where(turn < 0, rng.uniform(0, 3, len(lanes)), 0.0)
    return replace(lanes, late=late, toll=toll, turn=turn, least=least, hop=lanes.stage)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_c_and_numpy_give_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pricer = random_pricer(rng)
    if pricer.native is None:
        pytest.skip("no C compiler")
    lanes, budget = random_lanes(rng, pricer, 7)
    price = rng.uniform(0.1, 2, len(pricer.pools))[pricer.pool_of] * pricer.chips
    values, tables = pricer.native.fill(price, lanes, budget, columns=True)
    alone, _ = pricer.native.fill(price, lanes, budget, columns=False)
    expected, expected_tables = fill_numpy(pricer, price, lanes, budget)
    assert tables is not None
    turned = with_late_stages(rng, lanes)
    for columns in (False, True):
        late, sides = pricer.native.fill(price, turned, budget, columns=columns)
        late_expected, sides_expected = fill_numpy(pricer, price, turned, budget)
        np.testing.assert_array_equal(late, late_expected)
    np.testing.assert_array_equal(sides, sides_expected)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(alone, expected)
    for lane in range(len(lanes)):
        for depth in range(len(values)):
            if np.isfinite(expected_tables[lane, depth]).any():
                np.testing.assert_array_equal(tables[lane, depth], expected_tables[lane, depth])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_nothing_cheaper_is_left_out_as_dominated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pricer = random_pricer(rng)
    hops = rng.uniform(0, 1, pricer.hops.seconds.shape)
    pricer = replace(pricer, hops=replace(pricer.hops, seconds=hops))
    lanes, budget = random_lanes(rng, pricer, 5)
    if rng.integers(2):
        lanes = with_late_stages(rng, lanes)
    price = rng.uniform(0.1, 2, len(pricer.pools))[pricer.pool_of] * pricer.chips
    values, _ = fill_numpy(pricer, price, lanes, budget)
    pricer.__dict__["dearer"] = Dearer(*(np.full(n, 1e300) for n in (len(hops), *hops.shape)))
    lanes = replace(lanes, hop=np.maximum(lanes.hop, 1e-290))  # none dominates
    everything, _ = fill_numpy(pricer, price, lanes, budget)
    depths = min(len(values), len(everything))
    np.testing.assert_allclose(values[:depths], everything[:depths], rtol=1e-12)
    assert not (everything[depths:] <= budget).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), compiled=st.booleans())
def test_a_column_costs_what_the_table_says(seed: int, compiled: bool) -> None:
    rng = np.random.default_rng(seed)
    pricer = random_pricer(rng)
    lanes, budget = random_lanes(rng, pricer, 5)
    chip_prices = rng.uniform(0.1, 2, len(pricer.pools))
    if compiled:
        solution = pricer.solve(chip_prices, lanes, budget)
    else:
        price = chip_prices[pricer.pool_of] * pricer.chips
        solution = Solution(pricer, price, lanes, *fill_numpy(pricer, price, lanes, budget))
    kind, rows = pricer.prices.runs.kind, list(pricer.prices.kinds)
    for depth, lane in np.argwhere(np.isfinite(solution.values)):
        column = solution.column(int(depth) + 1, int(lane))
        assert len(column.stages) == depth + 1
        cost, sender, end = 0.0, None, 0
        for s, stage in enumerate(column.stages):
            row = rows.index(stage.kind)
            run = kind[stage.layers[0], stage.num_layers]
            assert stage.layers[0] == end
            assert pricer.prices.seconds[row, run] <= lanes.cap[lane]
            assert pricer.prices.most_held[row, run] >= min(depth + 1 - s, lanes.table[lane, 7])
            if sender is not None:
                hop = pricer.hops.seconds[sender, pricer.pool_of[row]]
                cost += lanes.hop[lane] * hop
            else:
                cost += lanes.tail[lane] * pricer.tails[row, run]
            cost += solution.price[row] + lanes.stage[lane] * pricer.prices.seconds[row, run]
            sender, end = pricer.hops.senders[row], stage.layers[1]
        assert end == len(kind)
        assert cost == pytest.approx(solution.values[depth, lane], rel=1e-9)
