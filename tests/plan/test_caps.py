"""The limits on a stage's seconds that are priced are those that promise most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.caps import cells_of, halves, promising, stage_seconds
from pluribus.plan.prices import MANY
from pluribus.plan.pricing import Lanes

from .test_proof import random_column, random_generator


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_every_slowest_stage_is_one_of_the_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    generator = random_generator(rng)
    for pricer in generator.pricers.values():
        values = stage_seconds(pricer.prices, np.inf)
        for _ in range(8):
            column = random_column(rng, pricer)
            if column is not None:
                assert generator.pace(column).slowest in values


@given(count=st.integers(1, 300))
def test_cells_and_their_halves_hold_every_value_once(count: int) -> None:
    values = np.geomspace(1.0, 7.0, count)
    cells = cells_of(values)
    while (wide := cells[:, 0] < cells[:, 1]).any():
        cells = np.concatenate([cells[~wide], halves(values, cells[wide])])
    assert sorted(cells[:, 0].tolist()) == list(range(count))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), slack=st.sampled_from([1.05, 1.3, 3.0]))
def test_the_first_limit_is_the_best_of_all(seed: int, slack: float) -> None:
    rng = np.random.default_rng(seed)
    generator = random_generator(rng)
    if not generator.speeds.any():
        return
    deadline, batch = slack * generator.ideal_seconds, generator.batch
    chip_prices = deadline * generator.speeds * rng.uniform(0.6, 1.2, len(generator.pools))
    for size, pricer in generator.pricers.items():
        values = stage_seconds(pricer.prices, deadline)
        found = promising(pricer, chip_prices, deadline, batch, 3, 1e-3)
        ratios = [0.0]
        for value in values:
            zero = np.zeros(1)
            lane = Lanes(np.array([value]), zero, zero, zero, MANY)
            prices = pricer.solve(chip_prices, lane, np.array([np.inf])).values[:, 0]
            through = np.floor(deadline / value - np.arange(len(prices)))
            ratios += list(size * np.clip(through, 0, batch / size) / prices)
        assert next(iter(found.values()), 0.0) == pytest.approx(
            max(ratios) if max(ratios) >= 1e-3 else 0.0
        )
        assert list(found.values()) == sorted(found.values(), reverse=True)
