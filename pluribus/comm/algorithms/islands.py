"""Algorithms of two and more levels: what crosses between islands crosses once, over all rails.

Every rank carries some pieces of the buffer across. Carriers of the same piece in different
islands talk to each other (same rail to same rail), so that all network adapters of an island
work at once, each by its speed, also where islands are of unequal size. An island may be divided
in turn (the hosts of a site): inside, the same is done again. Only the hop between the outermost
islands is compressed, and everybody adds up the decoded values, its own included: equal bits
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pluribus.comm.algorithms.layout import Layout, van_der_corput
from pluribus.comm.program import INPUT, OUTPUT, Builder, Kind, Span, chunks, cut


@dataclass(frozen=True, slots=True)
class Coding:
    """What an algorithm needs to know of a codec.

    Attributes:
        block: elements; pieces are cut at multiples of it.
        num_bytes: coded bytes of so many elements.
        width: bytes of an element that is not coded.
        fast: whether decoding takes about as long as copying.
    """

    block: int
    num_bytes: Callable[[int], int]
    width: int = 4
    fast: bool = False

    def spreads(self, slots: int) -> bool:
        """Whether ``slots`` coded pieces for each rank to decode are less work inside an island
        than the sum they stand for."""
        return self.fast and 4 * slots * self.num_bytes(1 << 16) <= 3 * self.width << 16


class Piece(NamedTuple):
    """A part of the buffer that crosses on one rail.

    Attributes:
        order: of the pieces on its rail.
        owners: the rank that carries it in each island.
        home: island that adds it up when there are more than two.
        at: chooses who carries it inside an island that is divided.
    """

    span: Span
    order: int
    owners: Sequence[int]
    home: int
    at: Fraction = Fraction(0)


def all_reduce(
    b: Builder, layout: Layout, elements: int, chunk: int, coding: Coding | None = None
) -> None:
    """Reduce to the owners inside, all-reduce across on every rail, spread inside.

    With C islands each sends and receives 2 (C − 1)/C of the buffer over its slow link, the
    least there is for an all-reduce among C (Patarasuk and Yuan 2009, theorem 1); two islands
    swap, which is as few bytes and one hop fewer. Where the links of islands are of unequal
    speed, the slow ones add up less (`Layout.homes`).
    """
    pieces = _pieces(layout, elements, chunk, coding.block if coding else 1)
    for piece in pieces:
        for island, owner in enumerate(piece.owners):
            _collect(b, layout, island, owner, piece.at, piece.span, piece.span, piece.span)
    cross(b, pieces, coding, layout)


def _pieces(layout: Layout, elements: int, chunk: int, align: int) -> list[Piece]:
    count = len(layout.islands)
    pieces = []
    for start, stop, owners in layout.rails():
        span = Span(
            OUTPUT,
            int(elements * start) // align * align,
            elements if stop == 1 else int(elements * stop) // align * align,
        )
        # Each island adds up every C-th piece, so there should be as many for all.
        each = chunk if count == 2 else chunk * count
        number = max(1, -(-span.size // each) * (1 if count == 2 else count))
        homes = layout.homes(number)
        for order, part in enumerate(cut(span, number, align)):
            pieces.append(Piece(part, order, owners, homes[order]))
    pieces.sort(key=lambda piece: piece.order)  # all rails start at once
    return [piece._replace(at=van_der_corput(number)) for number, piece in enumerate(pieces)]


def cross(
    b: Builder, pieces: Sequence[Piece], coding: Coding | None, layout: Layout | None = None
) -> None:
    """The owners of each piece add up what they have.

    Args:
        layout: the sum then goes to all members of the islands; None: to its owners.
    """
    two = len(pieces[0].owners) == 2
    (_swap if two else _reduce_and_return)(b, layout, pieces, coding)


def _swap(
    b: Builder, layout: Layout | None, pieces: Sequence[Piece], coding: Coding | None
) -> None:
    """Both owners send their sum to each other; x + y has the same bits as y + x."""
    slots = _slots(b, pieces, coding, 2 if coding else 1)
    for span, _, owners, _, _ in pieces:
        for owner, other, slot in zip(owners, reversed(owners), slots[span] * 2, strict=False):
            if coding is None:
                b.transfer(owner, other, span, slot)
            else:
                b.local(owner, Kind.ENCODE, slot, span)
                b.transfer(owner, other, slot, slot)
    for piece in pieces:
        if coding is not None:
            _spread_coded(b, layout, piece, slots[piece.span], coding, finish=True)
            continue
        for owner in piece.owners:
            b.local(owner, Kind.REDUCE, piece.span, slots[piece.span][0])
            b.finish(owner, piece.span)
        _spread_sum(b, layout, piece)


def _reduce_and_return(
    b: Builder, layout: Layout | None, pieces: Sequence[Piece], coding: Coding | None
) -> None:
    """The owner at home adds up what the other islands' owners send and returns the sum."""
    count = len(pieces[0].owners)
    slots = _slots(b, pieces, coding, count) if coding else {}
    for span, _, owners, home, _ in pieces:
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
    for piece in pieces:
        span, owners, home = piece.span, piece.owners, piece.home
        what = slots[span][home] if coding else span
        if coding is not None:
            b.local(owners[home], Kind.ENCODE, what, span)
        for distance in range(1, count):
            b.transfer(owners[home], owners[(home + distance) % count], what, what)
        if coding is not None:
            _spread_coded(b, layout, piece, [what], coding, finish=False)
        else:
            _spread_sum(b, layout, piece)


def _spread_sum(b: Builder, layout: Layout | None, piece: Piece) -> None:
    if layout is None:
        return
    for island, owner in enumerate(piece.owners):
        _spread(b, layout, island, owner, piece.at, piece.span, piece.span)


def _spread_coded(
    b: Builder, layout: Layout | None, piece: Piece, slots: Sequence[Span], coding: Coding,
    finish: bool,
) -> None:  # fmt: skip
    """The owners' coded slots become the sum on every rank: they spread, or what they say does."""
    ranks: Sequence[int] = piece.owners
    spreads = layout is not None and coding.spreads(len(slots))
    if layout is not None and spreads:
        ranks = range(layout.size)
        for island, owner in enumerate(piece.owners):
            for slot in slots:
                _spread(b, layout, island, owner, piece.at, slot, slot)
    for rank in ranks:
        b.decode(rank, piece.span, slots)
        if finish:
            b.finish(rank, piece.span)
    if not spreads:
        _spread_sum(b, layout, piece)


def _slots(
    b: Builder, pieces: Sequence[Piece], coding: Coding | None, width: int
) -> dict[Span, list[Span]]:
    """Per piece, ``width`` places side by side; of one size on all ranks, but memory that is
    never touched is never there."""
    sizes = {p.span: coding.num_bytes(p.span.size) if coding else p.span.size for p in pieces}
    buffer = b.scratch(width * sum(sizes.values()), coded=coding is not None)
    slots, at = {}, 0
    for span, size in sizes.items():
        slots[span] = [Span(buffer, at + i * size, at + (i + 1) * size) for i in range(width)]
        at += width * size
    return slots


def all_gather(
    b: Builder, layout: Layout, elements: int, chunk: int, coding: Coding | None = None
) -> None:
    """Each rank's part crosses to each other island once, on its rail, and spreads there.

    Coded, all decode the same bytes, the rank whose part it is included.
    """
    pieces = chunks(Span(INPUT, 0, elements), chunk, coding.block if coding else 1)
    slots = _part_slots(b, pieces, coding, layout.size) if coding else {}
    for number, piece in enumerate(pieces):
        for home, members in enumerate(layout.islands):
            for position, rank in enumerate(members):
                at = (position + van_der_corput(number)) / len(members)
                target = _at(piece, rank * elements)
                read, write = piece, target
                if coding is not None:
                    read = write = slots[rank, piece]
                    b.local(rank, Kind.ENCODE, read, piece)
                else:
                    b.local(rank, Kind.COPY, target, piece)
                for island in range(len(layout.islands)):
                    gate = rank if island == home else layout.carrier(island, at)
                    if island != home:
                        b.transfer(rank, gate, read, write)
                    _spread(b, layout, island, gate, at, read if island == home else write, write)
                if coding is not None:
                    for other in range(layout.size):
                        b.decode(other, target, [write])


def reduce_scatter(
    b: Builder, layout: Layout, elements: int, chunk: int, coding: Coding | None = None
) -> None:
    """Each island adds up what it has for a rank of another on that rank's rail and sends one sum
    across."""
    pieces = chunks(Span(OUTPUT, 0, elements), chunk, coding.block if coding else 1)
    sums = b.scratch(layout.size * elements)  # a carrier touches its own targets' only
    slots = _part_slots(b, pieces, coding, layout.size * len(layout.islands)) if coding else {}
    for number, piece in enumerate(pieces):
        for home, members in enumerate(layout.islands):
            for position, rank in enumerate(members):
                own = Span(INPUT, rank * elements + piece.start, rank * elements + piece.stop)
                partial = Span(sums, own.start, own.stop)
                at = (position + van_der_corput(number)) / len(members)
                b.local(rank, Kind.COPY, piece, own)
                for distance in range(len(layout.islands)):
                    island = (home + distance) % len(layout.islands)
                    if island == home:
                        _collect(b, layout, island, rank, at, own, partial, piece)
                        continue
                    gate = layout.carrier(island, at)
                    b.local(gate, Kind.COPY, partial, own)
                    _collect(b, layout, island, gate, at, own, partial, partial)
                    if coding is None:
                        b.transfer(gate, rank, partial, piece, reduce=True)
                        continue
                    slot = slots[rank * len(layout.islands) + island, piece]
                    b.local(gate, Kind.ENCODE, slot, partial)
                    b.transfer(gate, rank, slot, slot)
                    b.local(rank, Kind.DECODE_ADD, piece, slot)
                b.finish(rank, piece)


def _part_slots(
    b: Builder, pieces: Sequence[Span], coding: Coding, parts: int
) -> dict[tuple[int, Span], Span]:
    """A coded place for each of ``parts`` parts of each piece."""
    sizes = [coding.num_bytes(piece.size) for piece in pieces]
    buffer = b.scratch(parts * sum(sizes), coded=True)
    slots, at = {}, 0
    for part in range(parts):
        for piece, size in zip(pieces, sizes, strict=True):
            slots[part, piece] = Span(buffer, at, at + size)
            at += size
    return slots


def broadcast(b: Builder, layout: Layout, elements: int, chunk: int, root: int) -> None:
    """From island to island in a chain, each chunk on the next rail, and spread inside.

    Every slow link carries everything once. A single chunk leaves from the root at once; more are
    first dealt to the members of its island, whose links then work side by side.
    """
    home = layout.island_of(root)
    count = len(layout.islands)
    pieces = chunks(Span(OUTPUT, 0, elements), chunk)
    for number, piece in enumerate(pieces):
        at = van_der_corput(number)
        source = root if len(pieces) == 1 else layout.carrier(home, at)
        b.transfer(root, source, piece, piece)
        gates = {home: source}
        for distance in range(1, count):
            island = (home + distance) % count
            gates[island] = layout.carrier(island, at)
            b.transfer(source, gates[island], piece, piece)
            source = gates[island]
        for island, gate in gates.items():
            _spread(b, layout, island, gate, at, piece, piece, but=root)


def all_to_all(b: Builder, layout: Layout, elements: int, chunk: int) -> None:
    """What a member has for a rank elsewhere goes there by way of the neighbour on that rank's
    rail; each pair of rails then exchanges few large messages instead of many small ones.

    Neighbours are the members of an innermost island.

    Args:
        elements: for each rank, the same for all.
    """
    n = layout.size
    near = layout.leaves()
    staged = b.scratch(max(map(len, near)) * n * elements)
    for piece in chunks(Span(INPUT, 0, elements), chunk):
        across: list[tuple[int, int, Span, Span]] = []
        for home, members in enumerate(near):
            for row, source in enumerate(members):
                for island, others in enumerate(near):
                    for position, target in enumerate(others):
                        read = _shifted(piece, INPUT, target * elements)
                        write = _shifted(piece, OUTPUT, source * elements)
                        gate = members[position * len(members) // len(others)]
                        if island == home:
                            b.transfer(source, target, read, write)
                        elif gate == source:
                            across.append((source, target, read, write))
                        else:
                            slot = _shifted(piece, staged, (row * n + target) * elements)
                            b.transfer(source, gate, read, slot)
                            across.append((gate, target, slot, write))
        for gate, target, read, write in across:
            b.transfer(gate, target, read, write)


def _collect(
    b: Builder, layout: Layout, island: int, owner: int, at: Fraction,
    own: Span, partial: Span, into: Span,
) -> None:  # fmt: skip
    """Adds up in ``into`` of ``owner``, where its own addend is, the ``own`` of an island's other
    members; carriers on the way do so in ``partial``."""
    inner = layout.inside(island)
    if inner is None:
        for member in _others(layout.islands[island], owner):
            b.transfer(member, owner, own, into, reduce=True)
        return
    for part, members in enumerate(inner.islands):
        if owner in members:
            _collect(b, inner, part, owner, at, own, partial, into)
            continue
        gate = inner.carrier(part, at)
        b.local(gate, Kind.COPY, partial, own)
        _collect(b, inner, part, gate, at, own, partial, partial)
        b.transfer(gate, owner, partial, into, reduce=True)


def _spread(
    b: Builder, layout: Layout, island: int, source: int, at: Fraction,
    read: Span, write: Span, but: int = -1,
) -> None:  # fmt: skip
    """Sends ``read`` of ``source`` to ``write`` of an island's other members.

    Args:
        but: a rank that has it.
    """
    inner = layout.inside(island)
    if inner is None:
        for member in _others(layout.islands[island], source):
            if member != but:
                b.transfer(source, member, read, write)
        return
    for part, members in enumerate(inner.islands):
        if source in members:
            _spread(b, inner, part, source, at, read, write, but)
            continue
        gate = but if but in members else inner.carrier(part, at)
        if gate != but:
            b.transfer(source, gate, read, write)
        _spread(b, inner, part, gate, at, write, write, but)


def _others(members: tuple[int, ...], rank: int) -> list[int]:
    """The members but one, starting behind it, so that not everybody begins at the same rank."""
    at = members.index(rank) + 1
    return [member for member in members[at:] + members[:at] if member != rank]


def _at(piece: Span, offset: int) -> Span:
    return _shifted(piece, OUTPUT, offset)


def _shifted(piece: Span, buffer: int, offset: int) -> Span:
    return Span(buffer, offset + piece.start, offset + piece.stop)
