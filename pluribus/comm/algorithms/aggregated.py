"""All-reduce through an aggregator: inside every island to an owner, the owners' sums to the
aggregator, its sum back the same way.

Each owner sends its bytes once and gets the sum once, where a ring of N sends them 2 (N − 1)/N
times in 2 (N − 1) hops (BytePS: Jiang et al., OSDI 2020; SwitchML: Sapio et al., NSDI 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.program import OUTPUT, Builder, Span, chunks, cut

CHUNK_ELEMENTS = 1 << 16  # 256 KiB: the aggregator begins to add early, and its slots stay small


def streams(layout: Layout) -> list[list[int]]:
    """Per stream to the aggregator, the ranks that contribute to it, one of every island.

    Members of an island take a stream each, so that all its links work; where crossing islands is
    nothing special every rank contributes to the only stream.
    """
    if layout.is_flat:
        return [list(range(layout.size))]
    count = max(map(len, layout.islands))
    return [[island[at % len(island)] for island in layout.islands] for at in range(count)]


def all_reduce(b: Builder, layout: Layout, elements: int, chunk: int) -> None:
    """The aggregator's streams stand behind the ranks: stream s is peer ``layout.size + s``."""
    contributors = streams(layout)
    islands: Sequence[Sequence[int]] = layout.islands
    if layout.is_flat:
        islands = [[rank] for rank in range(layout.size)]
    for number, span in enumerate(cut(Span(OUTPUT, 0, elements), len(contributors))):
        for part in chunks(span, min(chunk, CHUNK_ELEMENTS)):
            for owner, members in zip(contributors[number], islands, strict=True):
                others = [member for member in members if member != owner]
                for member in others:
                    b.transfer(member, owner, part, part, reduce=True)
                b.exchange(owner, layout.size + number, part)
                b.finish(owner, part)
                for member in others:
                    b.transfer(owner, member, part, part)
