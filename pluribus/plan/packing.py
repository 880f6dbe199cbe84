"""Packs groups of chips that must share a node into nodes, or says which one has no place."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# States the exact search may visit for degrees that do not divide each other. Reached only with
# three or more such degrees in hundreds of unlike nodes; the pack is then reported as not found.
_MOST_STATES = 200_000


@dataclass(frozen=True)
class Packing:
    """Where groups of chips go, or what has no place.

    Attributes:
        nodes: per node, the sizes of the groups it holds, largest first.
        unplaced: groups that found no place, by size; empty if all did.
        proven: whether `unplaced` is known to have no place, however the others are arranged.
    """

    nodes: tuple[tuple[int, ...], ...]
    unplaced: Mapping[int, int]
    proven: bool = True


def divisible(sizes: Sequence[int]) -> bool:
    """Whether each size divides the next larger one."""
    return all(b % a == 0 for a, b in itertools.pairwise(sorted(set(sizes))))


def pack(groups: Mapping[int, int], capacities: Sequence[int]) -> Packing:
    """Puts groups of chips into nodes, each group whole in one node.

    Args:
        groups: how many groups there are of each size.
        capacities: free chips of each node.

    Notes:
        Where each size divides the next larger one, largest first is exact: wherever a group
        goes, it takes the same number of places of every smaller size (Coffman, Garey & Johnson
        1987, "Bin packing with divisible item sizes"). If besides the largest size divides every
        node, groups fit as soon as their chips do. For other sizes first-fit is tried, then
        every way to fill the nodes, kind of node by kind of node.
    """
    wanted = {size: count for size, count in groups.items() if count}
    first = _first_fit(wanted, capacities)
    if not first.unplaced or divisible(list(wanted)):
        return first
    found, complete = _exact(wanted, capacities)
    if found is None:
        return Packing(first.nodes, first.unplaced, proven=complete)
    return Packing(found, {})


def _first_fit(groups: Mapping[int, int], capacities: Sequence[int]) -> Packing:
    """Largest first, each as many as a node takes."""
    free = list(capacities)
    held: list[list[int]] = [[] for _ in capacities]
    unplaced = {}
    for size in sorted(groups, reverse=True):
        left = groups[size]
        for node, room in enumerate(free):
            take = min(left, room // size)
            held[node] += [size] * take
            free[node] -= size * take
            left -= take
        if left:
            unplaced[size] = left
    return Packing(tuple(map(tuple, held)), unplaced)


def _exact(
    groups: Mapping[int, int], capacities: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...] | None, bool]:
    """(groups of each node, True), or (None, whether every way was tried).

    Nodes of one capacity are alike, so their fillings are taken in a fixed order, each as often
    as it is of use and then fewer times.
    """
    sizes = sorted(groups, reverse=True)
    kinds = sorted(Counter(capacities).items(), reverse=True)
    steps = [
        (kind, filling)
        for kind, (room, _) in enumerate(kinds)
        for filling in _fillings(sizes, room)
    ]
    dead: set[tuple] = set()

    def cover(step: int, nodes: int, left: tuple[int, ...]) -> list[tuple[int, tuple]] | None:
        """(capacity, filling) per node, from this step on; ``nodes`` are left of its kind."""
        if not any(left):
            return []
        if step == len(steps):
            return None
        kind, filling = steps[step]
        room, _ = kinds[kind]
        rooms = room * nodes + sum(r * n for r, n in kinds[kind + 1 :])
        state = (step, nodes, left)
        wanted = sum(size * n for size, n in zip(sizes, left, strict=True))
        if wanted > rooms or state in dead or len(dead) > _MOST_STATES:
            return None
        useful = max((-(-n // f) for f, n in zip(filling, left, strict=True) if f), default=0)
        last = step + 1 == len(steps) or steps[step + 1][0] != kind
        for times in range(min(useful, nodes), -1, -1):
            rest = tuple(max(n - f * times, 0) for f, n in zip(filling, left, strict=True))
            after = kinds[kind + 1][1] if last and kind + 1 < len(kinds) else nodes - times
            found = cover(step + 1, after, rest)
            if found is not None:
                return [(room, filling)] * times + found
        dead.add(state)
        return None

    found = cover(0, kinds[0][1], tuple(groups[size] for size in sizes))
    if found is None:
        return None, len(dead) <= _MOST_STATES
    by_room: dict[int, list[tuple]] = {}
    for room, filling in reversed(found):
        by_room.setdefault(room, []).append(filling)
    left = Counter(groups)
    nodes = []
    for room in capacities:
        filling = by_room[room].pop() if by_room.get(room) else (0,) * len(sizes)
        held = []
        for size, count in zip(sizes, filling, strict=True):
            held += [size] * min(count, left[size])
            left[size] -= min(count, left[size])
        nodes.append(tuple(held))
    return tuple(nodes), True


def _fillings(sizes: Sequence[int], room: int) -> Iterator[tuple[int, ...]]:
    """Every way to fill a node that leaves room for no further group, fullest of large first."""
    if len(sizes) == 1:
        yield (room // sizes[0],)
        return
    for count in range(room // sizes[0], -1, -1):
        for rest in _fillings(sizes[1:], room - count * sizes[0]):
            yield (count, *rest)
