"""All-reduce where some islands add up inside by their vendor's library.

The library leaves each member of its island with one shard of the sum, of equal size; shards
cross between islands and the library gathers them. Islands without a library do the same over
paths. What crosses is the same in both cases, so neither side knows how the other adds up inside.
"""

from __future__ import annotations

from itertools import pairwise

from pluribus.comm.algorithms.islands import Coding, Piece, cross
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.program import OUTPUT, Builder, Span, cut


def shard_elements(elements: int, members: int, align: int = 1) -> int:
    """Of each member's shard; the last ones may reach beyond the buffer's end."""
    return -(-elements // (members * align)) * align


def all_reduce(
    b: Builder,
    layout: Layout,
    elements: int,
    chunk: int,
    coding: Coding | None = None,
    shard: bool = False,
) -> None:
    """The part of the all-reduce that goes over paths.

    Args:
        shard: this rank's OUTPUT is its shard, added up by its island's library; else it is the
            whole buffer and the island adds up over paths.
    """
    count = len(layout.islands)
    align = coding.block if coding else 1
    sizes = [shard_elements(elements, len(members), align) for members in layout.islands]
    bounds = {min(size * k, elements) for size in sizes for k in range(-(-elements // size))}
    own = layout.island_of(b.rank)
    offset = layout.islands[own].index(b.rank) * sizes[own] if shard else 0
    pieces: list[Piece] = []
    for start, stop in pairwise(sorted({*bounds, elements})):
        owners = [m[start // size] for m, size in zip(layout.islands, sizes, strict=True)]
        number = -(-(stop - start) // chunk)
        if count > 2:  # each island adds up as many
            number = -(-number // count) * count
        for order, part in enumerate(cut(Span(OUTPUT, start, stop), max(1, number), align)):
            moved = Span(OUTPUT, part.start - offset, part.stop - offset)
            pieces.append(Piece(moved, order, owners, order % count))
    pieces.sort(key=lambda piece: piece.order)  # all rails start at once
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
