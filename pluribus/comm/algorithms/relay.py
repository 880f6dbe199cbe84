"""Collectives where some islands move and add up inside by their vendor's library.

What crosses is cut in one shard for each member of an island: for a sum, the library leaves each
member with its shard of what the others need; of what comes, each member gets its shard and the
library gathers them. Islands without a library do the same over paths. What crosses is the same in
both cases, so neither side knows how the other works inside.

Everywhere ``shard`` says that this rank's island has a library, and its buffers are shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from pluribus.comm.algorithms.islands import Coding, Piece, cross
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.program import INPUT, OUTPUT, Builder, Kind, Span, cut


def shard_elements(elements: int, members: int, align: int = 1) -> int:
    """Of each member's shard; the last ones may reach beyond the buffer's end."""
    return -(-elements // (members * align)) * align


class Others(NamedTuple):
    """The parts of the ranks outside an island, one behind the other, as its members share them.

    Attributes:
        shard: elements for each member.
        starts: rank → where its part begins.
    """

    shard: int
    starts: dict[int, int]


def others(layout: Layout, island: int, elements: int) -> Others:
    """Of parts of ``elements``."""
    members = layout.islands[island]
    outside = [rank for rank in range(layout.size) if rank not in members]
    starts = {rank: elements * at for at, rank in enumerate(outside)}
    return Others(shard_elements(elements * len(outside), len(members)), starts)


def all_reduce(
    b: Builder, layout: Layout, elements: int, chunk: int, root: int = 0,
    coding: Coding | None = None, shard: bool = False,
) -> None:  # fmt: skip
    """The part of the all-reduce that goes over paths.

    Args:
        shard: this rank's OUTPUT is its shard, added up by its island's library; else it is the
            whole buffer and the island adds up over paths.
    """
    own = layout.island_of(b.rank)
    count, align = len(layout.islands), coding.block if coding else 1
    pieces = _pieces(layout, elements, chunk, align, count if count > 2 else 1)
    offset = _offset(layout, b.rank, elements, align) if shard else 0
    pieces = [piece._replace(span=_moved(piece.span, -offset)) for piece in pieces]
    inside = [
        (piece.span, owner, member)
        for piece in pieces
        for island, owner in enumerate(piece.owners)
        for member in layout.islands[island]
        if member != owner and not (shard and island == own)
    ]
    for span, owner, member in inside:
        b.transfer(member, owner, span, span, reduce=True)
    cross(b, pieces, coding)
    for span, owner, member in inside:
        b.transfer(owner, member, span, span)


def broadcast(
    b: Builder, layout: Layout, elements: int, chunk: int, root: int,
    coding: Coding | None = None, shard: bool = False,
) -> None:  # fmt: skip
    """From island to island in a chain, each piece on its rail.

    Args:
        shard: in the root's island all have everything by the library, and OUTPUT is that; in
            others it is this rank's shard.
    """
    own, home = layout.island_of(b.rank), layout.island_of(root)
    offset = _offset(layout, b.rank, elements, 1) if shard and own != home else 0
    for piece in _pieces(layout, elements, chunk, 1, 1):
        span = _moved(piece.span, -offset)
        source = piece.owners[home]
        if not (shard and own == home):
            b.transfer(root, source, span, span)
        for distance in range(1, len(layout.islands)):
            gate = piece.owners[(home + distance) % len(layout.islands)]
            b.transfer(source, gate, span, span)
            source = gate
        for island, gate in enumerate(piece.owners):
            if not (shard and island == own):
                for member in layout.islands[island]:
                    if member not in (gate, root):
                        b.transfer(gate, member, span, span)


def _offset(layout: Layout, rank: int, elements: int, align: int) -> int:
    members = layout.islands[layout.island_of(rank)]
    return members.index(rank) * shard_elements(elements, len(members), align)


def _pieces(layout: Layout, elements: int, chunk: int, align: int, multiple: int) -> list[Piece]:
    """A buffer cut at the bounds of all islands' shards, each part in a multiple of some number of
    pieces."""
    sizes = [shard_elements(elements, len(members), align) for members in layout.islands]
    bounds = {min(size * k, elements) for size in sizes for k in range(-(-elements // size))}
    pieces: list[Piece] = []
    for start, stop in pairwise(sorted({*bounds, elements})):
        owners = [m[start // size] for m, size in zip(layout.islands, sizes, strict=True)]
        number = multiple * max(1, -(-(stop - start) // (chunk * multiple)))
        for order, part in enumerate(cut(Span(OUTPUT, start, stop), number, align)):
            pieces.append(Piece(part, order, owners, order % len(layout.islands)))
    return sorted(pieces, key=lambda piece: piece.order)  # all rails start at once


def all_gather(
    b: Builder, layout: Layout, elements: int, chunk: int, root: int = 0,
    coding: Coding | None = None, shard: bool = False,
) -> None:  # fmt: skip
    """Each rank's part crosses to each other island once.

    Args:
        shard: OUTPUT is this rank's shard of the others' parts.
    """
    own = layout.island_of(b.rank)
    moves = []
    for island, members in enumerate(layout.islands):
        size, starts = others(layout, island, elements)
        for source, start in starts.items():
            for order, part in _cut(elements, chunk, [(start, size)]):
                position, within = divmod(start + part.start, size)
                moves.append((order, source, island, members[position], part, within))
        if not (shard and island == own):
            for source in members:
                for _, part in _cut(elements, chunk, []):
                    target = _moved(part, source * elements, OUTPUT)
                    b.local(source, Kind.COPY, target, part)
                    for member in members:
                        if member != source:
                            b.transfer(source, member, part, target)
    for _, source, island, gate, part, within in sorted(moves, key=lambda move: move[0]):
        if shard and island == own:
            b.transfer(source, gate, part, Span(OUTPUT, within, within + part.size))
            continue
        target = _moved(part, source * elements, OUTPUT)
        b.transfer(source, gate, part, target)
        for member in layout.islands[island]:
            if member != gate:
                b.transfer(gate, member, target, target)


def reduce_scatter(
    b: Builder, layout: Layout, elements: int, chunk: int, root: int = 0,
    coding: Coding | None = None, shard: bool = False,
) -> None:  # fmt: skip
    """Each island sends its sum for a rank of another there once.

    Args:
        shard: INPUT is this rank's shard of its island's sums for the others, OUTPUT its island's
            sum for itself.
    """
    own, count = layout.island_of(b.rank), len(layout.islands)
    cuts = [others(layout, island, elements) for island in range(count)]
    moves = []
    for target in range(layout.size):
        known = [(c.starts[target], c.shard) for c in cuts if target in c.starts]
        moves += [(order, target, part) for order, part in _cut(elements, chunk, known)]
    sums = -1 if shard else b.scratch(layout.size * elements)
    coded, at = -1, 0
    if coding is not None:
        each = sum(coding.num_bytes(part.size) for _, _, part in moves)
        coded = b.scratch((count - 1) * each, coded=True)
    for _, target, part in sorted(moves, key=lambda move: move[0]):
        home, into = layout.island_of(target), _moved(part, 0, OUTPUT)
        given = _moved(part, target * elements)
        if not (shard and home == own):
            b.local(target, Kind.COPY, into, given)
            for member in layout.islands[home]:
                if member != target:
                    b.transfer(member, target, given, into, reduce=True)
        for distance in range(1, count):
            island = (home + distance) % count
            size, starts = cuts[island]
            position, within = divmod(starts[target] + part.start, size)
            gate = layout.islands[island][position]
            partial = Span(INPUT, within, within + part.size)
            if not (shard and island == own):
                partial = _moved(given, 0, sums)
                b.local(gate, Kind.COPY, partial, given)
                for member in layout.islands[island]:
                    if member != gate:
                        b.transfer(member, gate, given, partial, reduce=True)
            if coding is None:
                b.transfer(gate, target, partial, into, reduce=True)
                continue
            slot = Span(coded, at, at + coding.num_bytes(part.size))
            at = slot.stop
            b.local(gate, Kind.ENCODE, slot, partial)
            b.transfer(gate, target, slot, slot)
            b.local(target, Kind.DECODE_ADD, into, slot)
        b.finish(target, into)


def _cut(elements: int, chunk: int, shards: Sequence[tuple[int, int]]) -> list[tuple[int, Span]]:
    """(order, INPUT span) of a part's pieces.

    Args:
        shards: (where the part begins, elements of a shard) for each cut into shards.
    """
    bounds = {0, elements}
    for start, size in shards:
        first = -start % size
        bounds |= set(range(first, elements, size))
    found = []
    for start, stop in pairwise(sorted(bounds)):
        number = max(1, -(-(stop - start) // chunk))
        found += list(enumerate(cut(Span(INPUT, start, stop), number)))
    return found


def _moved(span: Span, offset: int, buffer: int | None = None) -> Span:
    into = span.buffer if buffer is None else buffer
    return Span(into, span.start + offset, span.stop + offset)


Write = Callable[[Builder, Layout, int, int, int, Coding | None, bool], None]
WRITTEN: dict[str, Write] = {
    "all_reduce": all_reduce,
    "broadcast": broadcast,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
}
