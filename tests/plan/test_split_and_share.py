"""The two small exact algorithms, against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.share import deal_evenly, deal_micro_batches
from pluribus.plan.split import _library, even_split, min_max_split, split_numpy

entries = st.one_of(st.integers(-5, 20).map(float), st.just(math.inf))


@st.composite
def stage_costs(draw: st.DrawFn) -> list[np.ndarray]:
    """Any costs at all of [a, b), some infinite; empty runs always are."""
    num_layers, num_stages = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    size = num_layers + 1
    result = []
    for _ in range(num_stages):
        flat = draw(st.lists(entries, min_size=size * size, max_size=size * size))
        cost = np.array(flat).reshape(size, size)
        cost[np.tril_indices(size)] = np.inf
        result.append(cost)
    return result


@settings(max_examples=50, deadline=None)
@given(costs=stage_costs())
def test_the_cut_has_the_least_maximum_and_then_the_least_total(costs: list[np.ndarray]) -> None:
    num_layers = costs[0].shape[0] - 1
    best = (math.inf, math.inf)
    for inner in itertools.combinations(range(1, num_layers), len(costs) - 1):
        cut = list(itertools.pairwise((0, *inner, num_layers)))
        paid = [float(cost[run]) for cost, run in zip(costs, cut, strict=True)]
        if all(map(math.isfinite, paid)):
            best = min(best, (max(paid), sum(paid)))
    found = min_max_split(costs)
    if math.isinf(best[0]):
        assert found is None
        return
    assert found is not None
    ends = [found[0][0], *(end for _, end in found)]
    assert [a for a, _ in found] == ends[:-1]
    assert (ends[0], ends[-1]) == (0, num_layers)
    assert ends == sorted(set(ends))  # no stage is empty
    paid = [float(cost[run]) for cost, run in zip(costs, found, strict=True)]
    assert (max(paid), sum(paid)) == best


@settings(max_examples=200, deadline=None)
@given(costs=stage_costs())
def test_c_and_numpy_cut_alike(costs: list[np.ndarray]) -> None:
    if _library() is None:
        pytest.skip("no C compiler")
    assert min_max_split(costs) == split_numpy(costs)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), stages=st.integers(1, 12))
def test_c_and_numpy_cut_many_layers_alike(seed: int, stages: int) -> None:
    """Sums of unlike layers, where rounding could tell one order of additions from another."""
    rng = np.random.default_rng(seed)
    costs = []
    for _ in range(stages):
        done = np.concatenate([[0.0], np.cumsum(rng.choice(rng.uniform(0.1, 1, 3), 40))])
        cost = done[None] - done[:, None]
        cost[np.tril_indices(len(done))] = np.inf
        cost[cost > rng.uniform(0.05, 1.2) * done[-1]] = np.inf
        costs.append(cost)
    assert min_max_split(costs) == split_numpy(costs)


def test_a_chip_twice_as_fast_takes_twice_the_layers() -> None:
    runs = np.subtract.outer(range(10), range(10)).T.astype(float)
    runs[runs <= 0] = np.inf
    assert min_max_split([runs, runs / 2]) == ((0, 3), (3, 9))


def test_the_fuller_of_two_equal_maxima_is_not_taken() -> None:
    """Both cuts have maximum 6; the one that leaves the other stage less to do fills faster."""
    first, second = np.full((4, 4), np.inf), np.full((4, 4), np.inf)
    first[0, 1], first[0, 2] = 6.0, 6.0
    second[1, 3], second[2, 3] = 5.0, 1.0
    assert min_max_split([first, second]) == ((0, 2), (2, 3))


@given(num_layers=st.integers(1, 40), num_stages=st.integers(1, 40))
def test_the_even_cut_differs_by_one_at_most(num_layers: int, num_stages: int) -> None:
    cut = even_split(num_layers, num_stages)
    sizes = [b - a for a, b in cut]
    assert sum(sizes) == num_layers
    assert [a for a, _ in cut] == [0, *itertools.accumulate(sizes)][:-1]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


times = st.integers(0, 12).map(float)


@settings(max_examples=50, deadline=None)
@given(
    pipelines=st.lists(st.tuples(times, st.integers(1, 9).map(float)), min_size=1, max_size=4),
    total=st.integers(0, 9),
)
def test_the_last_pipeline_ends_as_early_as_can_be(
    pipelines: list[tuple[float, float]], total: int
) -> None:
    def end(counts: tuple[int, ...]) -> float:
        return max(f + (m - 1) * e for (f, e), m in zip(pipelines, counts, strict=True))

    ways = [
        counts
        for counts in itertools.product(range(1, total + 1), repeat=len(pipelines))
        if sum(counts) == total
    ]
    found = deal_micro_batches([f for f, _ in pipelines], [e for _, e in pipelines], total)
    if not ways:
        assert found is None
        return
    assert found in ways
    assert end(found) == min(map(end, ways))


def test_four_times_as_fast_gets_four_times_as_many() -> None:
    assert deal_micro_batches([1, 4], [1, 4], 15) == (12, 3)


@pytest.mark.parametrize(
    ("pipelines", "total", "counts"), [(3, 9, (3, 3, 3)), (3, 8, (3, 3, 2)), (2, 1, (1, 0))]
)
def test_an_even_deal(pipelines: int, total: int, counts: tuple[int, ...]) -> None:
    assert deal_evenly(pipelines, total) == counts
