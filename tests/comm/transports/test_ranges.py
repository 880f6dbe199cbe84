"""Ranges against a plain set."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pluribus.comm.transports.ranges import Ranges

spans = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(st.tuples(st.booleans(), spans), max_size=30), spans)
def test_like_a_set(deeds: list, asked: tuple[int, int]) -> None:
    ranges, model = Ranges(), set()
    for put, (start, end) in deeds:
        if put:
            new = set(range(start, end)) - model
            assert ranges.add(start, end) == len(new)
            model |= new
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
        listed = list(ranges)
        assert {p for a, b in listed for p in range(a, b)} == model
        assert all(b < c for (_, b), (c, _) in itertools.pairwise(listed))
        assert ranges.size == len(model)
    gaps = ranges.gaps(*asked)
    assert {p for a, b in gaps for p in range(a, b)} == set(range(*asked)) - model


def test_pop_first_takes_at_most() -> None:
    ranges = Ranges()
    ranges.add(3, 10)
    assert ranges.pop_first(5) == (3, 8)
    assert ranges.pop_first(5) == (8, 10)
    assert len(ranges) == 0
