"""Measured grids: between the points, beyond them, and never better than they promise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.predict.grid import BETWEEN_SPREAD, BEYOND_SPREAD, read_grid, read_share


def value(grid: dict, tp: int, micro_batch: int) -> float:
    reading = read_grid(grid, tp, micro_batch)
    assert reading is not None
    return reading.value


def test_a_measured_shape_is_read_as_it_is() -> None:
    reading = read_grid({1: {1: 3.0, 2: 5.0}}, 1, 2)
    assert (reading.value, reading.spread) == (5.0, 0.0)


def test_micro_batches_are_affine() -> None:
    grid = {1: {1: 3.0, 2: 5.0, 8: 17.0}}  # 1 + 2 m
    assert value(grid, 1, 4) == pytest.approx(9.0)
    assert value(grid, 1, 16) == pytest.approx(33.0)
    assert value({1: {2: 5.0, 8: 17.0}}, 1, 1) == pytest.approx(3.0)
    assert read_grid(grid, 1, 4).spread == BETWEEN_SPREAD
    assert read_grid(grid, 1, 16).spread == BEYOND_SPREAD


def test_noise_at_the_end_does_not_bend_times_down() -> None:
    assert value({1: {1: 1.0, 4: 4.0, 8: 4.0}}, 1, 16) == pytest.approx(4.0 + 8 * 3 / 7)
    assert value({1: {4: 4.0, 8: 3.9}}, 1, 16) >= 3.9
    # Steeper than proportion would leave a negative fixed part.
    assert value({1: {2: 2.0, 4: 8.0}}, 1, 1) == pytest.approx(1.0)


def test_degrees_are_powers() -> None:
    grid = {1: {1: 8.0}, 4: {1: 2.0}, 8: {1: 1.0}}
    assert value(grid, 2, 1) == pytest.approx(4.0)
    # Perfect so far: at best perfect beyond, and twice the chips never give more than twice.
    assert value(grid, 16, 1) == pytest.approx(0.5)
    assert value({2: {1: 4.0}, 4: {1: 2.5}}, 1, 1) == pytest.approx(4.0 * 4.0 / 2.5)


def test_a_gain_that_shrinks_goes_on_shrinking() -> None:
    grid = {1: {1: 8.0}, 2: {1: 5.0}, 4: {1: 4.0}}
    assert value(grid, 8, 1) > 4.0 * 4.0 / 5.0
    # Cards whose links are slow lose by sharing a layer, and lose more with more of them.
    slow = {1: {1: 2.0}, 4: {1: 4.0}}
    assert value(slow, 8, 1) == pytest.approx(4.0 * 2**0.5)


def test_a_hole_takes_the_growth_of_another_degree() -> None:
    grid = {1: {1: 1.0}, 2: {1: 0.6, 4: 2.1}}  # degree 1 did not fit beyond one sequence
    assert value(grid, 1, 4) == pytest.approx(1.0 * 2.1 / 0.6)


def test_one_lone_point_tells_of_itself_only() -> None:
    assert read_grid({2: {4: 1.0}}, 2, 8) is None
    assert read_grid({2: {4: 1.0}}, 4, 4) is None
    assert read_grid({}, 1, 1) is None


def test_shares_are_whole_and_divided_parts() -> None:
    row = {1: 100 + 800, 2: 100 + 400, 8: 100 + 100}
    assert read_share(row, 4) == pytest.approx(300)
    assert read_share(row, 16) == pytest.approx(150)
    assert read_share({2: 500.0, 8: 200.0}, 1) == pytest.approx(900)
    assert read_share({4: 10.0}, 8) == 5.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from([1, 2, 4, 8]),
        st.dictionaries(
            st.sampled_from([1, 2, 4, 8, 16]),
            st.floats(1e-5, 10.0), min_size=1, max_size=5,
        ),
        min_size=1, max_size=4,
    ),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    st.sampled_from([1, 2, 3, 4, 8, 12, 16, 64]),
)  # fmt: skip
def test_any_grid_gives_a_time_above_zero(grid: dict, tp: int, micro_batch: int) -> None:
    reading = read_grid(grid, tp, micro_batch)
    if reading is None:
        return
    assert reading.value > 0
    row = grid.get(tp)
    if row and len(row) > 1 and micro_batch > max(row):
        assert reading.value >= row[max(row)]
