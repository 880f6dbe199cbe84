"""Node packing against brute force."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.packing import divisible, pack


def can_pack(items: list[int], rooms: list[int]) -> bool:
    """Every way, largest item first."""
    dead: set[tuple] = set()

    def rest(index: int, rooms: list[int]) -> bool:
        if index == len(items):
            return True
        state = (index, tuple(sorted(rooms)))
        if state in dead:
            return False
        for room in set(rooms):
            if room >= items[index]:
                left = [*rooms]
                left.remove(room)
                if rest(index + 1, [*left, room - items[index]]):
                    return True
        dead.add(state)
        return False

    items = sorted(items, reverse=True)
    return rest(0, rooms)


@settings(max_examples=300, deadline=None)
@given(
    groups=st.dictionaries(st.integers(1, 6), st.integers(0, 5), max_size=3),
    rooms=st.lists(st.integers(0, 8), min_size=1, max_size=4),
)
def test_what_can_be_packed_is_packed(groups: dict[int, int], rooms: list[int]) -> None:
    items = [size for size, count in groups.items() for _ in range(count)]
    packing = pack(groups, rooms)
    assert packing.proven
    assert (not packing.unplaced) == can_pack(items, rooms)
    held = [size for node in packing.nodes for size in node]
    assert all(sum(node) <= room for node, room in zip(packing.nodes, rooms, strict=True))
    assert Counter(held) + Counter(packing.unplaced) == Counter(items)


def test_it_says_which_group_has_no_place() -> None:
    """Nine chips are free, but never four in one node."""
    assert pack({4: 1, 2: 2}, [3, 3, 3]).unplaced == {4: 1}
    assert pack({4: 2, 1: 1}, [8]).unplaced == {1: 1}


def test_first_fit_alone_would_miss_it() -> None:
    """Largest first puts the threes into the six-chip node and strands a two: 3 + 2, 2 + 2 + 2."""
    packing = pack({3: 1, 2: 4}, [6, 5])
    assert not packing.unplaced
    assert sorted(map(sum, packing.nodes)) == [5, 6]


def test_powers_of_two_fit_as_soon_as_their_chips_do() -> None:
    assert divisible([1, 2, 4, 8])
    assert not divisible([2, 3])
    packing = pack({8: 3, 4: 5, 2: 7, 1: 6}, [8] * 8)
    assert not packing.unplaced
    assert sum(map(sum, packing.nodes)) == 64


def test_a_thousand_nodes_and_degrees_that_do_not_divide() -> None:
    assert not pack({2: 1500, 3: 1000}, [6] * 1000).unplaced
    assert pack({2: 1501, 3: 1000}, [6] * 1000).unplaced
