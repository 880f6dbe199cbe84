"""Algorithms for ranks that are all equally far from each other."""

from __future__ import annotations

from collections.abc import Sequence

from pluribus.comm.program import INPUT, OUTPUT, Builder, Kind, Span, chunks, cut


def one_shot_all_reduce(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Everybody sends everything to everybody and adds up in rank order: one hop."""
    whole = Span(OUTPUT, 0, elements)
    slots = b.scratch(size * elements)
    slot = [Span(slots, rank * elements, (rank + 1) * elements) for rank in range(size)]
    for distance in range(1, size):
        for source in range(size):
            target = (source + distance) % size
            b.transfer(source, target, whole, slot[source])
    for rank in range(size):
        b.local(rank, Kind.COPY, slot[rank], whole)
        b.local(rank, Kind.COPY, whole, slot[0])
        for other in range(1, size):
            b.local(rank, Kind.REDUCE, whole, slot[other])
        b.finish(rank, whole)


def direct_all_reduce(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Every rank adds up one part, which all send to it, and sends the sum to all: two hops."""
    parts = [chunks(part, chunk) for part in cut(Span(OUTPUT, 0, elements), size)]
    for owner, pieces in enumerate(parts):
        if b.rank == owner:
            _collect(b, size, owner, pieces)
        else:
            for piece in pieces:
                b.transfer(b.rank, owner, piece, piece, reduce=True)
    _spread_parts(b, size, parts)


def _collect(b: Builder, size: int, owner: int, pieces: Sequence[Span]) -> None:
    for piece in pieces:
        for distance in range(1, size):
            b.transfer((owner + distance) % size, owner, piece, piece, reduce=True)
        b.finish(owner, piece)


def _spread_parts(b: Builder, size: int, parts: Sequence[Sequence[Span]]) -> None:
    for distance in range(1, size):
        for owner, pieces in enumerate(parts):
            for piece in pieces:
                b.transfer(owner, (owner + distance) % size, piece, piece)


def ring_all_reduce(b: Builder, size: int, elements: int, chunk: int) -> None:
    """2 (n − 1) steps to the right-hand neighbour (Patarasuk and Yuan 2009)."""
    parts = [chunks(part, chunk) for part in cut(Span(OUTPUT, 0, elements), size)]
    for step in range(size - 1):
        for rank in range(size):
            for piece in parts[(rank - step) % size]:
                b.transfer(rank, (rank + 1) % size, piece, piece, reduce=True)
    for rank in range(size):
        for piece in parts[(rank + 1) % size]:
            b.finish(rank, piece)
    for step in range(size - 1):
        for rank in range(size):
            for piece in parts[(rank + 1 - step) % size]:
                b.transfer(rank, (rank + 1) % size, piece, piece)


def doubling_all_reduce(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Recursive doubling: ⌈log₂ n⌉ swaps of everything (Thakur et al. 2005 §4.4).

    Ranks beyond the largest power of two hand theirs in first and get the result last.
    """
    power = 1 << (size.bit_length() - 1)
    pieces = chunks(Span(OUTPUT, 0, elements), chunk)
    levels = power.bit_length() - 1
    slots = b.scratch(max(1, levels) * elements)
    _fold(b, size, power, pieces)
    for level in range(levels):
        for piece in pieces:
            start = level * elements + piece.start
            slot = Span(slots, start, start + piece.size)
            for rank in range(power):
                b.transfer(rank, rank ^ (1 << level), piece, slot)
            for rank in range(power):
                b.local(rank, Kind.REDUCE, piece, slot)
    _unfold(b, size, power, pieces)


def halving_all_reduce(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Rabenseifner 2004: reduce-scatter by recursive halving, all-gather by doubling."""
    power = 1 << (size.bit_length() - 1)
    parts = [chunks(part, chunk) for part in cut(Span(OUTPUT, 0, elements), power)]
    everything = [piece for part in parts for piece in part]
    levels = power.bit_length() - 1
    _fold(b, size, power, everything)
    for level in reversed(range(levels)):
        _halves(b, power, parts, level, reduce=True)
    for rank in range(power):
        for piece in parts[rank]:
            b.finish(rank, piece)
    for level in range(levels):
        _halves(b, power, parts, level, reduce=False)
    _unfold(b, size, power, everything, finished=True)


def _halves(
    b: Builder, power: int, parts: Sequence[Sequence[Span]], level: int, reduce: bool
) -> None:
    """Partners swap halves of the 2^(level+1) parts they still share."""
    for rank in range(power):
        partner = rank ^ (1 << level)
        side = partner if reduce else rank
        first = side >> level << level
        for part in parts[first : first + (1 << level)]:
            for piece in part:
                b.transfer(rank, partner, piece, piece, reduce=reduce)


def _fold(b: Builder, size: int, power: int, pieces: Sequence[Span]) -> None:
    for rank in range(power, size):
        for piece in pieces:
            b.transfer(rank, rank - power, piece, piece, reduce=True)


def _unfold(
    b: Builder, size: int, power: int, pieces: Sequence[Span], finished: bool = False
) -> None:
    if not finished:
        for rank in range(power):
            for piece in pieces:
                b.finish(rank, piece)
    for rank in range(power, size):
        for piece in pieces:
            b.transfer(rank - power, rank, piece, piece)


def direct_all_gather(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Everybody sends its own part to everybody."""
    pieces = chunks(Span(INPUT, 0, elements), chunk)
    for piece in pieces:
        for rank in range(size):
            b.local(rank, Kind.COPY, _at(piece, rank * elements), piece)
    for distance in range(1, size):
        for rank in range(size):
            for piece in pieces:
                b.transfer(rank, (rank + distance) % size, piece, _at(piece, rank * elements))


def direct_reduce_scatter(b: Builder, size: int, elements: int, chunk: int) -> None:
    """Everybody sends to each rank its part, which that rank adds up."""
    pieces = chunks(Span(OUTPUT, 0, elements), chunk)
    for target in range(size):
        for piece in pieces:
            own = Span(INPUT, target * elements + piece.start, target * elements + piece.stop)
            b.local(target, Kind.COPY, piece, own)
    for distance in range(1, size):
        for target in range(size):
            for piece in pieces:
                own = Span(INPUT, target * elements + piece.start, target * elements + piece.stop)
                b.transfer((target + distance) % size, target, own, piece, reduce=True)
    for target in range(size):
        for piece in pieces:
            b.finish(target, piece)


def _at(piece: Span, offset: int) -> Span:
    return Span(OUTPUT, offset + piece.start, offset + piece.stop)


def direct_broadcast(b: Builder, size: int, elements: int, chunk: int, root: int) -> None:
    """The root sends everything to everybody: one hop."""
    for piece in chunks(Span(OUTPUT, 0, elements), chunk):
        for distance in range(1, size):
            b.transfer(root, (root + distance) % size, piece, piece)


def chain_broadcast(b: Builder, size: int, elements: int, chunk: int, root: int) -> None:
    """Each rank passes what it gets on to the next: every link carries everything once."""
    pieces = chunks(Span(OUTPUT, 0, elements), chunk)
    for distance in range(size - 1):
        source, target = (root + distance) % size, (root + distance + 1) % size
        for piece in pieces:
            b.transfer(source, target, piece, piece)


def direct_gather(b: Builder, size: int, elements: int, chunk: int, root: int) -> None:
    """Everybody sends its own part to the root."""
    for piece in chunks(Span(INPUT, 0, elements), chunk):
        for rank in range(size):
            b.transfer(rank, root, piece, _at(piece, rank * elements))


def direct_scatter(b: Builder, size: int, elements: int, chunk: int, root: int) -> None:
    """The root sends everybody its part."""
    for piece in chunks(Span(OUTPUT, 0, elements), chunk):
        for rank in range(size):
            part = Span(INPUT, rank * elements + piece.start, rank * elements + piece.stop)
            b.transfer(root, rank, part, piece)


def direct_all_to_all(
    b: Builder, sizes_in: Sequence[int], sizes_out: Sequence[int], chunk: int
) -> None:
    """Everybody sends to everybody; only this rank's own splits are known, and needed.

    Frames are in the order of their senders, as if all ranks' had been written down.
    """
    sent, received = _segments(INPUT, sizes_in), _segments(OUTPUT, sizes_out)
    size = len(sizes_in)
    for piece, target in zip(
        chunks(sent[b.rank], chunk), chunks(received[b.rank], chunk), strict=True
    ):
        b.local(b.rank, Kind.COPY, target, piece)
    for distance in range(1, size):
        to, source = (b.rank + distance) % size, (b.rank - distance) % size
        for sender in sorted((b.rank, source)):
            for piece in chunks(sent[to] if sender == b.rank else received[source], chunk):
                b.transfer(sender, to if sender == b.rank else b.rank, piece, piece)


def equal_all_to_all(b: Builder, size: int, elements: int, chunk: int) -> None:
    """The same with equal parts."""
    direct_all_to_all(b, [elements] * size, [elements] * size, chunk)


def _segments(buffer: int, sizes: Sequence[int]) -> list[Span]:
    segments, start = [], 0
    for size in sizes:
        segments.append(Span(buffer, start, start + size))
        start += size
    return segments
