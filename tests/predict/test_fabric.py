"""Max-min fair sharing: worked examples, and the definition itself on random fabrics."""

from __future__ import annotations

import numpy as np
import pytest

from pluribus.predict.fabric import (
    Flows,
    adapters,
    completion_seconds,
    concurrent_ring_seconds,
    max_min_rates,
)


def test_a_flow_takes_what_a_slower_one_leaves() -> None:
    # Flow 0 crosses both links, flow 1 only the narrow one, flow 2 only the wide one.
    flows = Flows.of([[0, 1], [0], [1]])
    rates = max_min_rates(flows, np.array([10.0, 100.0]))
    assert rates == pytest.approx([5, 5, 95])


def test_a_symmetric_ring_step_runs_at_the_rate_of_an_adapter() -> None:
    count = 512
    ring = adapters(np.arange(count), np.roll(np.arange(count), -1))
    rates = max_min_rates(ring, np.full(2 * count, 50.0))
    assert np.all(rates == 50)


def test_a_receiver_of_many_is_shared_evenly() -> None:
    rates = max_min_rates(adapters(np.array([0, 1, 2]), np.array([3, 3, 0])), np.full(8, 12.0))
    assert rates == pytest.approx([6, 6, 12])


@pytest.mark.parametrize("seed", range(8))
def test_every_flow_is_held_by_a_full_link_where_none_is_faster(seed: int) -> None:
    """The definition of max-min fairness (Bertsekas and Gallager 1992, §6.5.2)."""
    random = np.random.default_rng(seed)
    links, count = 30, 200
    capacity = random.uniform(1, 100, links)
    paths = [random.choice(links, size=random.integers(1, 5), replace=False) for _ in range(count)]
    rates = max_min_rates(Flows.of(paths), capacity)
    crossing = np.zeros((count, links), bool)
    for f, path in enumerate(paths):
        crossing[f, path] = True
    load = rates @ crossing
    assert np.all(load <= capacity * (1 + 1e-9))
    full = load >= capacity * (1 - 1e-9)
    fastest = np.where(crossing, rates[:, None], 0).max(axis=0)
    for f in range(count):
        held = crossing[f] & full & (rates[f] >= fastest * (1 - 1e-9))
        assert held.any()


def test_who_ends_early_leaves_the_rest_to_the_others() -> None:
    # Both at 5 bytes/s until 10 bytes are through; then 20 more at 10 bytes/s.
    ends = completion_seconds(Flows.of([[0], [0]]), np.array([10.0, 30.0]), np.array([10.0]))
    assert ends == pytest.approx([2, 4])
    none = completion_seconds(Flows.of([[0], [0]]), np.array([0.0, 30.0]), np.array([10.0]))
    assert none == pytest.approx([0, 3])


def test_a_failed_link_slows_its_ring_and_hands_the_rest_to_the_others() -> None:
    rings = [[0, 1, 2, 3], [0, 1]]
    even = concurrent_ring_seconds(rings, [800.0, 800.0], np.full(4, 10.0), 0.0)
    slow = concurrent_ring_seconds(rings, [800.0, 800.0], np.array([10.0, 10.0, 1.0, 10.0]), 0.0)
    assert slow[0] == pytest.approx(2 * 3 / 4 * 800 / 1)
    assert slow[1] == pytest.approx(800 / 9)
    assert slow[1] < even[1] < even[0] < slow[0]
