"""Which algorithms there are for each operation, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pluribus.comm.algorithms import aggregated, flat, islands
from pluribus.comm.algorithms.islands import Coding
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.program import DIGEST_BYTES, Builder, Program, Span, cut

Write = Callable[[Builder, Layout, int, int, int, Coding | None], None]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to run an operation.

    Attributes:
        write: writes it down: (builder, layout, elements, chunk, root, coding).
        crosses: whether it is made for islands.
        aggregated: whether it needs an aggregator, which adds up float32.
        in_place: whether INPUT and OUTPUT are one buffer.
        scratch: its scratch memory per byte of the buffer and rank; keeps the one-shot small.
    """

    name: str
    write: Write
    crosses: bool = False
    aggregated: bool = False
    in_place: bool = False
    scratch: Callable[[int], float] = lambda size: 0.0


def _flat(function: Callable[..., None], rooted: bool = False) -> Write:
    def write(
        b: Builder, layout: Layout, elements: int, chunk: int, root: int, coding: Coding | None
    ) -> None:
        more = (root,) if rooted else ()
        function(b, layout.size, elements, chunk, *more)

    return write


def _levels(function: Callable[..., None], rooted: bool = False, coded: bool = False) -> Write:
    def write(
        b: Builder, layout: Layout, elements: int, chunk: int, root: int, coding: Coding | None
    ) -> None:
        more = (root,) if rooted else (coding,) if coded else ()
        function(b, layout, elements, chunk, *more)

    return write


_crossing = partial(Algorithm, "islands", crosses=True)

ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    operation: {algorithm.name: algorithm for algorithm in known}
    for operation, known in {
        "all_reduce": (
            Algorithm(
                "one_shot", _flat(flat.one_shot_all_reduce), in_place=True, scratch=lambda n: n
            ),
            Algorithm("direct", _flat(flat.direct_all_reduce), in_place=True),
            Algorithm("ring", _flat(flat.ring_all_reduce), in_place=True),
            Algorithm(
                "doubling",
                _flat(flat.doubling_all_reduce),
                in_place=True,
                scratch=lambda n: n.bit_length() - 1,
            ),
            Algorithm("halving", _flat(flat.halving_all_reduce), in_place=True),
            Algorithm("aggregator", _levels(aggregated.all_reduce), in_place=True, aggregated=True),
            _crossing(_levels(islands.all_reduce, coded=True), in_place=True),
        ),
        "all_gather": (
            Algorithm("direct", _flat(flat.direct_all_gather)),
            _crossing(_levels(islands.all_gather, coded=True)),
        ),
        "reduce_scatter": (
            Algorithm("direct", _flat(flat.direct_reduce_scatter)),
            _crossing(_levels(islands.reduce_scatter, coded=True)),
        ),
        "broadcast": (
            Algorithm("direct", _flat(flat.direct_broadcast, rooted=True), in_place=True),
            Algorithm("chain", _flat(flat.chain_broadcast, rooted=True), in_place=True),
            _crossing(_levels(islands.broadcast, rooted=True), in_place=True),
        ),
        "all_to_all": (
            Algorithm("direct", _flat(flat.equal_all_to_all)),
            _crossing(_levels(islands.all_to_all)),
        ),
        "gather": (Algorithm("direct", _flat(flat.direct_gather, rooted=True)),),
        "scatter": (Algorithm("direct", _flat(flat.direct_scatter, rooted=True)),),
    }.items()
}


def program(
    operation: str,
    name: str,
    layout: Layout,
    rank: int,
    elements: int,
    chunk: int,
    root: int = 0,
    coding: Coding | None = None,
    lanes: int = 1,
    verify: bool = False,
) -> Program:
    """The steps of one rank.

    Args:
        elements: of the buffer; of one rank's part where every rank has one (all_gather,
            reduce_scatter, all_to_all, gather, scatter).
        chunk: elements of one frame, about.
        lanes: paths to each peer.
        verify: compare a checksum of the output across ranks at the end.
    """
    builder = Builder(rank, lanes)
    ALGORITHMS[operation][name].write(builder, layout, elements, chunk, root, coding)
    if verify:
        compare_digests(builder, layout.size)
    return builder.build()


def compare_digests(b: Builder, size: int) -> None:
    """Every rank learns every rank's checksum of a result that must be equal on all."""
    digests = b.scratch(DIGEST_BYTES * size, coded=True)
    slots = cut(Span(digests, 0, DIGEST_BYTES * size), size)
    b.digest(slots[b.rank])
    for distance in range(1, size):
        for rank in range(size):
            b.transfer(rank, (rank + distance) % size, slots[rank], slots[rank])
    b.compare(slots)
