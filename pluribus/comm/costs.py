"""What an algorithm costs on given links: read off its own programs, priced as `predict` does.

The bytes per link and the hops one behind the other are counted in the programs that the engine
would run, so that a new algorithm needs no formula. Seconds come from
`pluribus.predict.algorithms`: latency, bytes over the narrowest link, and the fill of a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pluribus.comm.algorithms.aggregated import CHUNK_ELEMENTS
from pluribus.comm.algorithms.islands import Coding
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.program import FIRST_SCRATCH, Kind, Program, Step
from pluribus.predict.algorithms import Algorithm, Phase

# The processor's part of a message (o of LogP, Culler et al. 1993) as a share of the latency inside
# a host, which is nearly all software; fitted on sums and gathers of 1 and 16 KiB of 4 ranks on 2
# cores, bench/tuner.py, 25 November 2026.
_OVERHEAD = 0.2
# Of one aggregator process, in and out alike: on one core of an AMD EPYC of 2025, November 2026.
AGGREGATOR_BYTES_PER_S = 5e8
_TINY_ELEMENTS = 64  # for each rank: enough for every piece to exist
_LONG_ELEMENTS = 1 << 14  # for each rank, with codecs: long beside their blocks


@dataclass(frozen=True, slots=True)
class LinkCost:
    """A link as a message sees it.

    Attributes:
        latency_s: of a small message, one way.
        bytes_per_s: of a large one, losses included.
        loss: share of packets that had to be sent again.
    """

    latency_s: float
    bytes_per_s: float
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a group: inside its islands, and of one island to the rest.

    Attributes:
        near: its rate is of every rank when all of an island send at the same time.
        add_bytes_per_s: at which a rank adds up what it gets, all at the same time.
        code_bytes_per_s: by codec, at which the slowest rank encodes and decodes float32; of those
            that were measured.
        alone_bytes_per_s: inside an island, of a rank that sends while the others do not; 0: as
            when all send.
    """

    near: LinkCost
    far: LinkCost
    add_bytes_per_s: float = 5e9  # one core of the host that `TYPICAL` names
    code_bytes_per_s: Mapping[str, float] = field(default_factory=dict, hash=False)
    alone_bytes_per_s: float = 0.0

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Links:
        """From what `dataclasses.asdict` gave.

        Raises:
            ValueError: a figure is not positive.
        """
        links = [
            LinkCost(
                float(known[kind]["latency_s"]),
                float(known[kind]["bytes_per_s"]),
                float(known[kind].get("loss", 0.0)),
            )
            for kind in ("near", "far")
        ]
        adding = float(known.get("add_bytes_per_s", cls.add_bytes_per_s))
        coding = {str(k): float(v) for k, v in known.get("code_bytes_per_s", {}).items()}
        figures = [v for link in links for v in (link.latency_s, link.bytes_per_s)]
        if min(adding, *figures, *coding.values()) <= 0:
            raise ValueError("a link's latency or a rate is not positive")
        return cls(*links, adding, coding, float(known.get("alone_bytes_per_s", 0.0)))


# Until measured: shared memory and TCP of this library on a 2-core x86 host, November 2026.
TYPICAL = Links(near=LinkCost(150e-6, 2e9), far=LinkCost(250e-6, 1.2e8))


@dataclass(frozen=True, slots=True)
class Shape:
    """What an algorithm does on a layout.

    Attributes:
        near_hops, far_hops: messages one behind the other on the longest way.
        near_share: bytes the busiest rank sends or receives, per byte of the buffer.
        mean_share: bytes that a rank sends on average, likewise.
        far_share: bytes that enter or leave the busiest island, likewise.
        added: bytes the busiest rank adds to others, per byte of the buffer.
        beside: messages the busiest rank sends and receives beside those of its hops.
        far_way, near_way: bytes that pass one after the other on the longest way, if nothing is
            cut into chunks.
        piece: the longest message.
    """

    near_hops: int
    far_hops: int
    near_share: float
    mean_share: float
    far_share: float
    added: float
    beside: int
    far_way: float
    near_way: float
    piece: float


def shape(operation: str, name: str, layout: Layout) -> Shape:
    """Counts an algorithm's hops and bytes.

    A hop between islands is taken to be the long one: of two ways with as many of those, the one
    with more hops inside counts.
    """
    size = layout.size
    elements = _TINY_ELEMENTS * size
    per_rank = operation in ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
    given = _TINY_ELEMENTS if per_rank else elements
    programs = [program(operation, name, layout, rank, given, elements) for rank in range(size)]
    island = [layout.island_of(rank) for rank in range(size)]
    sent, received = [0] * size, [0] * size
    out, into = [0] * len(layout.islands), [0] * len(layout.islands)
    for rank, steps in enumerate(programs):
        for peer, count in steps.sent_to.items():
            sent[rank] += count
            if peer >= size:  # an aggregator, which sends as much back
                received[rank] += count
                out[island[rank]] += count
                into[island[rank]] += count
                continue
            received[peer] += count
            if island[rank] != island[peer]:
                out[island[rank]] += count
                into[island[peer]] += count
    (far_hops, near_hops), (far_way, near_way) = _longest_ways(programs, island)
    messages = max(
        sum(map(len, steps.sends.values())) + sum(map(len, steps.receives.values()))
        for steps in programs
    )
    return Shape(
        near_hops,
        far_hops,
        max(*sent, *received) / elements,
        sum(sent) / size / elements,
        max(*out, *into) / elements,
        max(_added(steps) for steps in programs) / elements,
        max(0, messages - 2 * (near_hops + far_hops)),
        far_way / elements,
        near_way / elements,
        max((step.source.size for p in programs for step in _sends(p)), default=0) / elements,
    )


def _sends(steps: Program) -> list[Step]:
    return [step for step in steps.steps if step.kind is Kind.SEND]


def _added(steps: Program) -> int:
    kinds = (Kind.RECEIVE_REDUCE, Kind.REDUCE)
    return sum(step.target.size for step in steps.steps if step.kind in kinds)


_Way = tuple[int, int]  # what crosses between islands, and what moves inside


def _longest_ways(programs: Sequence[Program], island: Sequence[int]) -> tuple[_Way, _Way]:
    """Over all chains of steps, the most hops one after the other, and the most elements."""
    waits = [list(steps.waits) for steps in programs]
    hops, moved = ([[(0, 0)] * len(steps.steps) for steps in programs] for _ in range(2))
    partner: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, steps in enumerate(programs):
        for (peer, lane), numbers in steps.sends.items():
            beyond = peer >= len(programs)  # an aggregator: what comes back is the partner
            at = rank if beyond else peer
            theirs = programs[at].receives[peer if beyond else rank, lane]
            for mine, other in zip(numbers, theirs, strict=True):
                partner[rank, mine] = (at, other)
                waits[at][other] += 1  # a receive also waits for its frame
    ready = [
        (rank, number)
        for rank, counts in enumerate(waits)
        for number, count in enumerate(counts)
        if not count
    ]
    while ready:
        rank, number = ready.pop()
        step = programs[rank].steps[number]
        after = [(rank, later, 0, 0) for later in programs[rank].blocks[number]]
        if step.kind is Kind.SEND:
            peer, other = partner[rank, number]
            far = 2 if step.peer >= len(programs) else int(island[rank] != island[peer])
            after.append((peer, other, far, int(not far)))
        for at, later, far, near in after:
            for way, size in ((hops, 1), (moved, step.source.size)):
                here = way[rank][number]
                way[at][later] = max(way[at][later], (here[0] + far * size, here[1] + near * size))
            waits[at][later] -= 1
            if not waits[at][later]:
                ready.append((at, later))
    return _most(hops), _most(moved)


def _most(ways: Sequence[Sequence[_Way]]) -> _Way:
    return max(max(each, default=(0, 0)) for each in ways)


def priced(name: str, what: Shape, links: Links, chunk_bytes: int) -> Algorithm:
    """The algorithm as `predict` prices it.

    Both kinds of link work at the same time, and the slower one sets the time of a long buffer. A
    short one is in one piece on each hop and takes as long as its longest way, if that is longer;
    a long one is cut into chunks and takes this once for a chunk: `Phase` has the passage between
    the two as a rate that grows with size.
    """
    latency = what.near_hops * links.near.latency_s + what.far_hops * links.far.latency_s
    latency += what.beside * _OVERHEAD * links.near.latency_s
    # Ranks of a host share its processors and memory: what all do together counts, unless one rank
    # is busy for longer by itself. Its own processor then adds up what has come.
    alone = max(links.alone_bytes_per_s, links.near.bytes_per_s)
    near = max(what.mean_share / links.near.bytes_per_s, what.near_share / alone)
    near += what.added / links.add_bytes_per_s
    far = what.far_share / links.far.bytes_per_s
    if far > near:
        share, rate = what.far_share, links.far.bytes_per_s
    else:
        share, rate = what.near_share, what.near_share / near if near else links.near.bytes_per_s
    # Inside, a hop's bytes are added up too.
    per_byte = near / what.near_share if what.near_share else 1 / links.near.bytes_per_s
    way = what.far_way / links.far.bytes_per_s + what.near_way * per_byte
    longer = max(0.0, way / max(near, far) - 1) if max(near, far) else 0.0
    half = share * chunk_bytes / what.piece if what.piece else 0.0
    return Algorithm(name, (Phase(latency, share, rate, longer, half),))


def coded(
    operation: str, layout: Layout, links: Links, chunk_bytes: int, coding: Coding, rate: float
) -> Algorithm:
    """The algorithm of islands with a codec on the hop between them, for float32.

    Args:
        rate: bytes per second of values that a rank encodes and decodes.
    """
    what, elements = shape(operation, "islands", layout), _LONG_ELEMENTS * layout.size
    given = _LONG_ELEMENTS if operation in ("all_gather", "reduce_scatter") else elements
    programs = [
        program(operation, "islands", layout, rank, given, elements, coding=coding)
        for rank in range(layout.size)
    ]
    sent, received, work = ([0] * layout.size for _ in range(3))
    for rank, steps in enumerate(programs):
        for step in steps.steps:
            short = step.source.buffer >= FIRST_SCRATCH
            short = short and steps.coded[step.source.buffer - FIRST_SCRATCH]
            num_bytes = step.source.size * (1 if short else 4)
            if step.kind is Kind.SEND:
                sent[rank] += num_bytes
                received[step.peer] += num_bytes
            elif step.kind is Kind.ENCODE:
                work[rank] += num_bytes
            elif step.kind in (Kind.DECODE, Kind.DECODE_ADD):
                work[rank] += 4 * step.target.size * max(1, step.part)
    whole = 4 * elements
    shorter = coding.num_bytes(_LONG_ELEMENTS) / (4 * _LONG_ELEMENTS)
    moved = replace(
        what,
        near_share=max(*sent, *received) / whole,
        mean_share=sum(sent) / layout.size / whole,
        far_share=what.far_share * shorter,
        # A byte that is encoded and one that is decoded together take one of `rate`.
        added=what.added + max(work) / 2 / whole * links.add_bytes_per_s / rate,
        far_way=what.far_way * shorter,
    )
    return priced("islands", moved, links, chunk_bytes)


def candidates(
    operation: str, layout: Layout, links: Links, chunk_bytes: int, aggregated: bool = False
) -> list[Algorithm]:
    """Every algorithm that makes sense on the layout, priced.

    Args:
        aggregated: whether there is an aggregator.
    """
    found = []
    for name, known in ALGORITHMS[operation].items():
        if known.aggregated:
            if aggregated:
                streams = layout.size if layout.is_flat else len(layout.islands)
                rate = min(links.far.bytes_per_s, AGGREGATOR_BYTES_PER_S / streams)
                links_there = replace(links, far=replace(links.far, bytes_per_s=rate))
                what = shape(operation, name, layout)
                found.append(priced(name, what, links_there, CHUNK_ELEMENTS * 4))
        elif not (known.crosses and layout.is_flat):
            found.append(priced(name, shape(operation, name, layout), links, chunk_bytes))
    return found
