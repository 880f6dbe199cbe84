"""Two-level algorithms: what crosses between islands crosses once, spread over all rails.

Inside an island every member owns some pieces of the buffer. Owners of the same piece in
different islands talk to each other (same rail to same rail), so that all network adapters of an
island work at once, also where islands are of unequal size. Only the hop between islands is
compressed, and everybody adds up the decoded values, its own included: equal bits everywhere.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.program import INPUT, OUTPUT, Builder, Kind, Span, chunks, cut


class Coding(Protocol):
    """What an algorithm needs to know of a codec."""

    block: int

    def num_bytes(self, num_elements: int) -> int: ...


def all_reduce(
    b: Builder, layout: Layout, elements: int, chunk: int, coding: Coding | None = None
) -> None:
    """Reduce to the owners inside, all-reduce across on every rail, spread inside.

    With C islands each sends and receives 2 (C − 1)/C of the buffer over its slow link, the
    least there is for an all-reduce among C (Patarasuk and Yuan 2009, theorem 1); two islands
    swap, which is as few bytes and one hop fewer.
    """
    count = len(layout.islands)
    align = coding.block if coding else 1
    pieces: list[Piece] = []
    for rail, span in enumerate(cut(Span(OUTPUT, 0, elements), layout.num_pieces, align)):
        # Each island adds up every C-th piece, so there should be as many for all.
        number = -(-span.size // chunk) if count == 2 else -(-span.size // (chunk * count)) * count
        owners = [layout.owner(island, rail) for island in range(count)]
        for order, part in enumerate(cut(span, max(1, number), align)):
            pieces.append(Piece(part, order, owners, order % count))
    pieces.sort(key=lambda piece: piece.order)  # all rails start at once
    for span, _, owners, _ in pieces:
        for owner, members in zip(owners, layout.islands, strict=True):
            for member in _others(members, owner):
                b.transfer(member, owner, span, span, reduce=True)
    cross(b, pieces, coding)
    for span, _, owners, _ in pieces:
        for owner, members in zip(owners, layout.islands, strict=True):
            for member in _others(members, owner):
                b.transfer(owner, member, span, span)


class Piece(NamedTuple):
    """A part of the buffer that crosses on one rail.

    Attributes:
        order: of the pieces on its rail.
        owners: the rank that carries it in each island.
        home: island that adds it up when there are more than two.
    """

    span: Span
    order: int
    owners: list[int]
    home: int


def cross(b: Builder, pieces: list[Piece], coding: Coding | None) -> None:
    """Owners of each piece in all islands add up what they have of it; all get the sum."""
    if len(pieces[0].owners) == 2:
        _swap(b, pieces, coding)
    else:
        _reduce_and_spread(b, pieces, coding)


def _swap(b: Builder, pieces: list[Piece], coding: Coding | None) -> None:
    """Both owners send their sum to each other; x + y has the same bits as y + x."""
    slots = _slots(b, pieces, coding, 2)
    for span, _, owners, _ in pieces:
        first, second = slots[span]
        if coding is None:
            b.transfer(owners[0], owners[1], span, first)
            b.transfer(owners[1], owners[0], span, first)
        else:
            b.local(owners[0], Kind.ENCODE, first, span)
            b.local(owners[1], Kind.ENCODE, second, span)
            b.transfer(owners[0], owners[1], first, first)
            b.transfer(owners[1], owners[0], second, second)
    for span, _, owners, _ in pieces:
        first, second = slots[span]
        for owner in owners:
            if coding is None:
                b.local(owner, Kind.REDUCE, span, first)
            else:
                b.local(owner, Kind.DECODE, span, first)
                b.local(owner, Kind.DECODE_ADD, span, second)
            b.finish(owner, span)


def _reduce_and_spread(b: Builder, pieces: list[Piece], coding: Coding | None) -> None:
    """The owner at home adds up what the other islands' owners send and returns the sum."""
    count = len(pieces[0].owners)
    slots = _slots(b, pieces, coding, count)
    for span, _, owners, home in pieces:
        for distance in range(1, count):
            island = (home + distance) % count
            if coding is None:
                b.transfer(owners[island], owners[home], span, span, reduce=True)
                continue
            slot = slots[span][island]
            b.local(owners[island], Kind.ENCODE, slot, span)
            b.transfer(owners[island], owners[home], slot, slot)
            b.local(owners[home], Kind.DECODE_ADD, span, slot)
        b.finish(owners[home], span)
    for span, _, owners, home in pieces:
        slot = slots[span][home]
        if coding is not None:
            b.local(owners[home], Kind.ENCODE, slot, span)
            b.local(owners[home], Kind.DECODE, span, slot)
        for distance in range(1, count):
            target = owners[(home + distance) % count]
            if coding is None:
                b.transfer(owners[home], target, span, span)
            else:
                b.transfer(owners[home], target, slot, slot)
                b.local(target, Kind.DECODE, span, slot)


def _slots(
    b: Builder, pieces: list[Piece], coding: Coding | None, count: int
) -> dict[Span, list[Span]]:
    """Per piece, where what comes from each island goes; of one size on all ranks, but memory
    that is never touched is never there."""
    sizes = {p.span: coding.num_bytes(p.span.size) if coding else p.span.size for p in pieces}
    width = count if coding else 1
    buffer = b.scratch(width * sum(sizes.values()), coded=coding is not None)
    slots, at = {}, 0
    for span, size in sizes.items():
        starts = [at + island % width * size for island in range(count)]
        slots[span] = [Span(buffer, start, start + size) for start in starts]
        at += width * size
    return slots


def all_gather(b: Builder, layout: Layout, elements: int, chunk: int) -> None:
    """Each rank's part crosses to each other island once, on its rail, and spreads there."""
    pieces = chunks(Span(INPUT, 0, elements), chunk)
    near: list[tuple[int, int, Span, Span]] = []
    for piece in pieces:
        for rank in range(layout.size):
            b.local(rank, Kind.COPY, _at(piece, rank * elements), piece)
    for piece in pieces:
        for home, members in enumerate(layout.islands):
            for position, rank in enumerate(members):
                target = _at(piece, rank * elements)
                for island, others in enumerate(layout.islands):
                    gate = rank if island == home else layout.owner(island, position)
                    if island != home:
                        b.transfer(rank, gate, piece, target)
                    read = piece if island == home else target
                    near += [(gate, other, read, target) for other in _others(others, gate)]
    for source, other, read, target in near:
        b.transfer(source, other, read, target)


def reduce_scatter(
    b: Builder, layout: Layout, elements: int, chunk: int, coding: Coding | None = None
) -> None:
    """Each island adds up what it has for a rank of another on that rank's rail and sends one sum
    across."""
    pieces = chunks(Span(OUTPUT, 0, elements), chunk, coding.block if coding else 1)
    sums = b.scratch(layout.size * elements)
    coded = None
    if coding is not None:
        room = sum(coding.num_bytes(piece.size) for piece in pieces)
        coded = b.scratch(layout.size * len(layout.islands) * room, coded=True)
    crossing: list[tuple[int, int, Span, Span, int]] = []
    inside: list[tuple[int, int, Span, Span]] = []
    for piece in pieces:
        for home, members in enumerate(layout.islands):
            for position, rank in enumerate(members):
                own = Span(INPUT, rank * elements + piece.start, rank * elements + piece.stop)
                partial = Span(sums, own.start, own.stop)
                b.local(rank, Kind.COPY, piece, own)
                for island, others in enumerate(layout.islands):
                    gate = rank if island == home else layout.owner(island, position)
                    into = piece if island == home else partial
                    if island != home:
                        b.local(gate, Kind.COPY, partial, own)
                        crossing.append((gate, rank, partial, piece, island))
                    inside += [(other, gate, own, into) for other in _others(others, gate)]
    for source, target, own, into in inside:
        b.transfer(source, target, own, into, reduce=True)
    at = 0
    for gate, rank, partial, piece, _ in crossing:
        if coding is None or coded is None:
            b.transfer(gate, rank, partial, piece, reduce=True)
            continue
        slot = Span(coded, at, at + coding.num_bytes(piece.size))
        at = slot.stop
        b.local(gate, Kind.ENCODE, slot, partial)
        b.transfer(gate, rank, slot, slot)
        b.local(rank, Kind.DECODE_ADD, piece, slot)
    for piece in pieces:
        for rank in range(layout.size):
            b.finish(rank, piece)


def broadcast(b: Builder, layout: Layout, elements: int, chunk: int, root: int) -> None:
    """From island to island in a chain, each chunk on the next rail, and spread inside.

    Every slow link carries everything once.
    """
    home = layout.island_of(root)
    count = len(layout.islands)
    order = [(home + distance) % count for distance in range(count)]
    for number, piece in enumerate(chunks(Span(OUTPUT, 0, elements), chunk)):
        source = root
        for island in order:
            gate = root if island == home else layout.owner(island, number)
            if island != home:
                b.transfer(source, gate, piece, piece)
            source = gate
        for island in order:
            gate = root if island == home else layout.owner(island, number)
            for member in _others(layout.islands[island], gate):
                b.transfer(gate, member, piece, piece)


def all_to_all(b: Builder, layout: Layout, elements: int, chunk: int) -> None:
    """What a member has for another island goes to each of its ranks by way of the own member on
    that rail; each pair of rails then exchanges few large messages instead of many small ones.

    Args:
        elements: for each rank, the same for all.
    """
    n = layout.size
    staged = b.scratch(n * n * elements)  # only the own rails' rows are ever touched

    def slot(source: int, target: int) -> Span:
        start = (source * n + target) * elements
        return Span(staged, start, start + elements)

    def span(buffer: int, rank: int) -> Span:
        return Span(buffer, rank * elements, (rank + 1) * elements)

    across: list[tuple[int, int, int]] = []
    for home, members in enumerate(layout.islands):
        for source in members:
            for island, others in enumerate(layout.islands):
                for position, target in enumerate(others):
                    if island == home:
                        b.transfer(source, target, span(INPUT, target), span(OUTPUT, source))
                        continue
                    gate = layout.owner(home, position)
                    b.transfer(source, gate, span(INPUT, target), slot(source, target))
                    across.append((source, gate, target))
    for source, gate, target in across:
        b.transfer(gate, target, slot(source, target), span(OUTPUT, source))


def _others(members: tuple[int, ...], rank: int) -> list[int]:
    """The members but one, starting behind it, so that not everybody begins at the same rank."""
    at = members.index(rank) + 1
    return [member for member in members[at:] + members[:at] if member != rank]


def _at(piece: Span, offset: int) -> Span:
    return Span(OUTPUT, offset + piece.start, offset + piece.stop)
