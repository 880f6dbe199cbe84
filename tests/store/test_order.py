"""The order of the data is a function of step and seed, and each epoch is a permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.store.order import sample_indices


@settings(max_examples=60, deadline=None)
@given(
    num_sequences=st.integers(1, 700),
    global_batch=st.integers(1, 90),
    seed=st.integers(0, 2**70),
)
def test_each_epoch_is_a_permutation(num_sequences: int, global_batch: int, seed: int) -> None:
    steps = -(-3 * num_sequences // global_batch)
    order = np.concatenate(
        [sample_indices(step, global_batch, num_sequences, seed) for step in range(steps)]
    )
    for epoch in range(3):
        seen = order[epoch * num_sequences : (epoch + 1) * num_sequences]
        assert np.array_equal(np.sort(seen), np.arange(num_sequences))


def test_epochs_and_seeds_differ() -> None:
    first, second = sample_indices(0, 500, 500, 0), sample_indices(1, 500, 500, 0)
    other = sample_indices(0, 500, 500, 1)
    for a, b in ((first, second), (first, other), (first, np.arange(500))):
        assert (a == b).sum() < 10


def test_neighbours_in_the_data_are_not_neighbours_in_the_order() -> None:
    order = sample_indices(0, 10_000, 10_000, 3)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.05
    # Each tenth of the epoch draws from every tenth of the data: 100 ± 5 σ of it.
    table = np.histogram2d(np.arange(10_000), order, bins=10)[0]
    assert abs(table - 100).max() < 50


def test_the_order_does_not_depend_on_how_it_is_cut_into_steps() -> None:
    whole = sample_indices(0, 60, 37, 9)
    assert np.array_equal(whole, np.concatenate([sample_indices(s, 20, 37, 9) for s in range(3)]))
    assert np.array_equal(whole, np.concatenate([sample_indices(s, 12, 37, 9) for s in range(5)]))


@pytest.mark.parametrize("num_sequences", [10**9 + 7, 2**40])
def test_large_data_needs_no_stored_permutation(num_sequences: int) -> None:
    drawn = sample_indices(1000, 4096, num_sequences, 0)
    assert drawn.min() >= 0
    assert drawn.max() < num_sequences
    assert len(np.unique(drawn)) == 4096
    assert abs(drawn.mean() / num_sequences - 0.5) < 0.03


def test_the_order_of_a_seed_is_frozen() -> None:
    """A resumed run of another version would otherwise see other data without a word."""
    assert sample_indices(3, 4, 1000, 42).tolist() == [990, 54, 755, 395]
