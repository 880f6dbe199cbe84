"""Which pools share pipelines."""

from __future__ import annotations

import math

import pytest

from pluribus.plan.candidates import _apart, _islands
from pluribus.plan.columns import chips_used
from pluribus.plan.generate import Generator
from pluribus.plan.shapes import ShapeFinder
from pluribus.plan.teams import apart

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def test_the_ways_of_the_most_pace_come_first() -> None:
    """Alone, `a` does not hold the model; `b` and `c` are quickest together."""
    seconds = {("a",): math.inf, ("b",): 4.0, ("c",): 4.0, ("a", "b"): 2.0, ("a", "c"): 3.0}
    seconds |= {("b", "c"): 1.0}
    ways = apart(("a", "b", "c"), seconds.__getitem__, 5)
    assert [sorted(way) for way in ways] == [[("a", "b"), ("c",)], [("a", "c"), ("b",)]]
    assert apart(("a", "b", "c"), seconds.__getitem__, 1) == ways[:1]


@pytest.fixture
def five() -> Generator:
    pools = [
        make_pool(name, make_chip(f"chip-{name}", tflops=tflops), nodes=1, chips_per_node=2)
        for name, tflops in zip("abcde", (1, 2, 3, 4, 5), strict=True)
    ]
    return Generator.of(make_setting(pools, make_model(blocks=6), make_job(batch=64)))


def test_groups_apart_share_out_all_pools(five: Generator) -> None:
    found = list(_apart(five, ShapeFinder(five.setting)))
    assert found
    for team in found:
        assert len(team) > 1
        used = [set(item.column.chips) for item in team]
        assert set.union(*used) == set(five.pools)
        assert sum(map(len, used)) == len(five.pools)  # no pool is in two groups
        assert sum(item.sequences for item in team) == five.batch
        limit = dict(zip(five.pools, five.available, strict=True))
        assert all(count <= limit[pool] for pool, count in chips_used(team).items())


def test_islands_are_the_best_shape_of_each_pool(five: Generator) -> None:
    finder = ShapeFinder(five.setting)
    found = list(_islands(five, finder))
    assert found
    for team in found:
        for item in team:
            (pool,) = item.column.chips
            size = item.column.micro_batch_size
            best = finder.best((pool,), size, five.batch)[0]
            assert tuple(stage.layers for stage in item.column.stages) == best.layers


def test_no_shape_is_quicker_than_the_bound_of_its_team(five: Generator) -> None:
    finder, batch = ShapeFinder(five.setting), five.batch
    for team in (("here/a",), ("here/b", "here/e"), ("here/c", "here/a", "here/d")):
        bound = finder.bound(team, 1, batch)
        best = finder.best(team, 1, batch, 1)[0]
        assert 0 < bound <= best.seconds(best.shape.micro_batches(batch)) * (1 + 1e-9)
