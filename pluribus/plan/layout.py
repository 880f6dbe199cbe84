"""Ways to lay the fragments of one pool out over its nodes.

A fragment is what must share a node: the tensor-parallel chips of one replica of one stage, with
its context-parallel ones where they fit. Fragments that hold the same layers are peers: they sum
gradients. How many peers sit side by side in a node, and whether a node or a rail is filled
first, is what the layouts differ in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluribus.core.errors import PlanError
from pluribus.hardware.pool import Pool
from pluribus.plan.packing import divisible, pack
from pluribus.spec.plan import Pipeline, Stage

PeerKey = tuple[tuple[tuple[int, int], ...], int]  # of peers: their layers and tensor parallel


def peer_key(stage: Stage) -> PeerKey:
    """Equal for stages of a pool that sum gradients chip by chip."""
    return stage.chunks or (stage.layers,), stage.tensor_parallel


@dataclass(frozen=True, eq=False)
class Fragments:
    """The fragments of one pool, in pipeline order; arrays are [fragment].

    Attributes:
        pool: where they go.
        nodes: per node, the chips it has for them.
        pipeline, stage, replica: whose they are.
        size: chips of each.
        peers: index into `keys`.
        keys: what the peers of each class hold.
    """

    pool: Pool
    nodes: tuple[tuple[int, ...], ...]
    pipeline: np.ndarray
    stage: np.ndarray
    replica: np.ndarray
    size: np.ndarray
    peers: np.ndarray
    keys: tuple[PeerKey, ...]

    @cached_property
    def by_peers(self) -> np.ndarray:
        """Fragments class by class."""
        return np.argsort(self.peers, kind="stable")

    @cached_property
    def rank(self) -> np.ndarray:
        """Position of each fragment among its peers."""
        order = self.by_peers
        first = np.searchsorted(self.peers[order], self.peers[order])
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - first
        return rank

    @cached_property
    def class_sizes(self) -> np.ndarray:
        """[class] number of peers."""
        return np.bincount(self.peers, minlength=len(self.keys))

    @cached_property
    def capacities(self) -> np.ndarray:
        """[node] chips it has for fragments."""
        return np.array([len(chips) for chips in self.nodes])

    def chips(self, layout: Layout, fragment: int) -> tuple[str, ...]:
        """Addresses of a fragment's chips in a layout."""
        node, first = int(layout.node[fragment]), int(layout.first[fragment])
        chips = self.nodes[node][first : first + int(self.size[fragment])]
        return tuple(f"{self.pool.address}/{node}/{chip}" for chip in chips)


@dataclass(frozen=True, eq=False)
class Layout:
    """A place for every fragment: its node, and its first among the node's chips."""

    node: np.ndarray
    first: np.ndarray


def fragments_of(
    pipelines: Sequence[Pipeline],
    pool: Pool,
    without: Collection[str] = (),
    *,
    whole_sequences: bool = True,
) -> Fragments:
    """The fragments of a plan in one pool.

    Args:
        without: addresses of chips that are not to be used.
        whole_sequences: keep the context-parallel chips of a replica together where a node has
            room for them.
    """
    keys: dict[PeerKey, int] = {}
    rows = []
    for p, pipeline in enumerate(pipelines):
        for s, stage in enumerate(pipeline.stages):
            if stage.pool != pool.address:
                continue
            peers = keys.setdefault(peer_key(stage), len(keys))
            size, sequence = stage.tensor_parallel, stage.tensor_parallel * stage.context_parallel
            if whole_sequences and sequence <= pool.chips_per_node:
                size = sequence
            rows += [(p, s, r, size, peers) for r in range(len(stage.chips) // size)]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    lost = {
        tuple(map(int, chip.split("/")[2:]))
        for chip in without
        if chip.startswith(f"{pool.address}/")
    }
    nodes = tuple(
        tuple(c for c in range(pool.chips_per_node) if (n, c) not in lost)
        for n in range(pool.nodes)
    )
    return Fragments(pool, nodes, *columns, tuple(keys))


def layouts(fragments: Fragments) -> Iterator[Layout]:
    """The layouts worth weighing, none of them twice.

    Peers sit side by side in groups of every size that a node has room for; groups fill node by
    node with the neighbours of a pipeline together, node by node with peers together, or rail by
    rail (all first places of the nodes, then all second ones).

    Raises:
        PlanError: a fragment has no place; says which.
    """
    sizes = Counter(fragments.size.tolist())
    packing = pack(sizes, fragments.capacities.tolist())
    if packing.unplaced:
        raise _no_place(fragments, sizes, packing.unplaced)
    if not divisible(list(sizes)):
        yield _from_packing(fragments, packing.nodes)
        return
    seen: set[bytes] = set()
    for layout in _regular(fragments, sorted(sizes)):
        mark = layout.node.tobytes() + layout.first.tobytes()
        if mark not in seen:
            seen.add(mark)
            yield layout


def _regular(fragments: Fragments, sizes: Sequence[int]) -> Iterator[Layout]:
    widths: set[tuple[int, ...]] = set()
    for chips in range(1, fragments.pool.chips_per_node + 1):
        width = tuple(max(1, chips // size) for size in sizes)
        if width not in widths:
            widths.add(width)
            for neighbours, by_rail in ((True, False), (False, False), (False, True)):
                yield _grouped(fragments, chips, neighbours, by_rail)
    backward = np.lexsort((-fragments.replica, -fragments.stage, fragments.pipeline))
    for order in (np.arange(len(backward)), backward):
        layout = _in_order(fragments, order)
        if layout is not None:
            yield layout


def _no_place(
    fragments: Fragments, sizes: Mapping[int, int], unplaced: Mapping[int, int]
) -> PlanError:
    pool = fragments.pool
    size, count = next(iter(unplaced.items()))
    every = ", ".join(f"{n} of {s}" for s, n in sorted(sizes.items(), reverse=True))
    total = sum(s * n for s, n in sizes.items())
    free = int(fragments.capacities.sum())
    return PlanError(
        f"{count} of {sizes[size]} groups of {size} tensor-parallel chips find no node of "
        f"{pool.address} with {size} chips left (groups: {every}; {total} chips of {free})",
        do="Use fewer or smaller tensor-parallel groups there, or plan again.",
    )


def _grouped(fragments: Fragments, chips: int, neighbours: bool, by_rail: bool) -> Layout:
    """Groups of peers on up to ``chips`` chips side by side, then what is left over.

    Larger fragments first: each size divides the next larger one, so no choice of places takes
    places from smaller ones (see `packing.pack`).
    """
    count = len(fragments.size)
    node, first = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    width = fragments.pool.chips_per_node
    free = np.arange(width)[None, :] < fragments.capacities[:, None]
    position = np.empty(count, dtype=np.int64)
    position[fragments.by_peers] = np.arange(count)
    for size in np.unique(fragments.size)[::-1]:
        mine = np.nonzero(fragments.size == size)[0]
        places = width // size
        slots = free[:, : places * size].reshape(len(free), places, size).all(axis=2)
        members = min(max(1, chips // int(size)), places)
        rank, total = fragments.rank[mine], fragments.class_sizes[fragments.peers[mine]]
        leads = mine[(rank % members == 0) & (rank + members <= total)]
        if not neighbours:
            leads = leads[np.argsort(fragments.peers[leads], kind="stable")]
        at_node, at_slot = _group_places(slots, members, by_rail)
        leads = leads[: len(at_node)]
        at_node, at_slot = at_node[: len(leads)], at_slot[: len(leads)]
        grouped = fragments.by_peers[position[leads][:, None] + np.arange(members)]
        slot = at_slot[:, None] + np.arange(members)
        node[grouped], first[grouped] = at_node[:, None], slot * size
        slots[at_node[:, None], slot] = False
        single = np.setdiff1d(mine, grouped.ravel())
        if not neighbours:
            single = single[np.argsort(fragments.peers[single], kind="stable")]
        rest_node, rest_slot = np.nonzero(slots)
        node[single] = rest_node[: len(single)]
        first[single] = rest_slot[: len(single)] * size
        taken = first[mine][:, None] + np.arange(size)
        free[node[mine][:, None], taken] = False
    return Layout(node, first)


def _in_order(fragments: Fragments, order: np.ndarray) -> Layout | None:
    """Pipelines one after the other, a node closed when the next fragment finds no room; None
    if the nodes do not suffice. The short node is the last: of a chain packed backward it holds
    the first stages."""
    node, used = 0, 0
    nodes, firsts = np.empty_like(fragments.size), np.empty_like(fragments.size)
    for fragment in order.tolist():
        size = int(fragments.size[fragment])
        while used + size > fragments.capacities[node]:
            node, used = node + 1, 0
            if node == len(fragments.nodes):
                return None
        nodes[fragment], firsts[fragment] = node, used
        used += size
    return Layout(nodes, firsts)


def on_nodes(fragments: Fragments, node: np.ndarray) -> Layout:
    """The layout with these nodes [fragment]; in a node larger fragments come first, then
    peers beside each other, so that like nodes have like rails."""
    first = np.empty_like(node)
    used = np.zeros(len(fragments.nodes), dtype=np.int64)
    for fragment in np.lexsort((fragments.rank, fragments.peers, -fragments.size)).tolist():
        first[fragment] = used[node[fragment]]
        used[node[fragment]] += fragments.size[fragment]
    return Layout(node, first)


def _group_places(slots: np.ndarray, members: int, by_rail: bool) -> tuple[np.ndarray, np.ndarray]:
    """(node, first slot) of every run of ``members`` free slots, in the order they are filled."""
    per_node = slots.shape[1] // members
    runs = slots[:, : per_node * members].reshape(len(slots), per_node, members).all(axis=2)
    if by_rail:
        run, node = np.nonzero(runs.T)
    else:
        node, run = np.nonzero(runs)
    return node, run * members


def _from_packing(fragments: Fragments, nodes: Sequence[Sequence[int]]) -> Layout:
    """The one layout of degrees that do not divide each other: as they were packed."""
    places: dict[int, list[tuple[int, int]]] = {}
    for n, sizes in enumerate(nodes):
        starts = np.cumsum([0, *sizes])
        for size, start in zip(sizes, starts, strict=False):
            places.setdefault(size, []).append((n, int(start)))
    taken = [places[size].pop(0) for size in fragments.size.tolist()]
    node, first = np.array(taken, dtype=np.int64).T
    return Layout(node, first)
