"""The global batch is dealt so that the last pipeline ends as early as can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.columns import Column
from pluribus.plan.generate import Generator
from pluribus.plan.rounding import deal, whole_teams

from .test_proof import random_column, random_generator


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_no_micro_batch_is_better_placed_elsewhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    generator: Generator = random_generator(rng)
    if not generator.speeds.any():
        return
    pricer = generator.pricers[1]
    tails = rng.uniform(0.0, 20.0, pricer.tails.shape) * pricer.prices.seconds.mean()
    generator.pricers[1] = replace(pricer, tails=tails)
    drawn = [random_column(rng, pricer) for _ in range(4)]
    uses: dict[Column, int] = {c: int(rng.integers(1, 4)) for c in drawn if c is not None}
    team = deal(generator, uses) if uses else None
    if team is None:
        return
    assert sum(item.sequences for item in team) == generator.batch

    def ends(column: Column, count: int) -> float:
        pace = generator.pace(column)
        return pace.seconds(count) if count else 0.0

    last = max(ends(item.column, max(item.micro_batches)) for item in team)
    dealt = {item.column: list(item.micro_batches) for item in team}
    for column, number in uses.items():
        counts = dealt.get(column, [])
        for count in [*counts, *[0] * (number - len(counts))]:
            # One more would make this one end as late as the last one, or later.
            if count < generator.pace(column).limit:
                assert ends(column, count + 1) >= last * (1 - 1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_whole_teams_come_soonest_first_and_no_sooner_than_fractions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    generator: Generator = random_generator(rng)
    if not generator.speeds.any():
        return
    drawn = [random_column(rng, generator.pricers[1]) for _ in range(6)]
    columns = tuple(dict.fromkeys(c for c in drawn if c is not None))
    if not columns or not generator.mix(1e9, columns).total >= generator.batch:
        return
    soonest = generator.deadline(generator.ideal_seconds, columns)
    found = whole_teams(generator, soonest, columns)
    ends = [max(generator.pace(c.column).seconds(max(c.micro_batches)) for c in t) for t in found]
    assert ends == sorted(ends)
    for team, end in zip(found, ends, strict=True):
        assert end >= soonest * (1 - 1e-3)
        assert sum(item.sequences for item in team) == generator.batch
        taken = sum(item.count * generator.chips_of([item.column])[:, 0] for item in team)
        assert (taken <= generator.available).all()
