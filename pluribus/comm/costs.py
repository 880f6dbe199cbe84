"""What an algorithm costs on given links: read off its own programs, priced as `predict` does.

The bytes per link and the hops one behind the other are counted in the programs that the engine
would run, so that a new algorithm needs no formula. Seconds come from
`pluribus.predict.algorithms`: latency, bytes over the narrowest link, and the fill of a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pluribus.comm.algorithms.aggregated import CHUNK_ELEMENTS
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.program import Kind, Program
from pluribus.predict.algorithms import Algorithm, Phase

# The processor's part of a message (o of LogP, Culler et al. 1993) as a share of the latency inside
# a host, which is nearly all software; fitted on 1 KiB sums of 4 ranks on 2 cores, bench/tuner.py.
_OVERHEAD = 0.5
# Of one aggregator process, in and out alike: on one core of an AMD EPYC of 2025, November 2026.
AGGREGATOR_BYTES_PER_S = 5e8
_TINY_ELEMENTS = 64  # for each rank: enough for every piece to exist


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
        add_bytes_per_s: at which a rank adds up what it gets, all at the same time.
    """

    near: LinkCost
    far: LinkCost
    add_bytes_per_s: float = 5e9  # one core of the host that `TYPICAL` names

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
        if min(adding, *(v for link in links for v in (link.latency_s, link.bytes_per_s))) <= 0:
            raise ValueError("a link's latency or rate is not positive")
        return cls(*links, adding)


# Until measured: shared memory and TCP of this library on a 2-core x86 host, November 2026.
TYPICAL = Links(near=LinkCost(150e-6, 2e9), far=LinkCost(250e-6, 1.2e8))


@dataclass(frozen=True, slots=True)
class Shape:
    """What an algorithm does on a layout.

    Attributes:
        near_hops, far_hops: messages one behind the other on the longest way.
        near_share: bytes the busiest rank sends or receives, per byte of the buffer.
        far_share: bytes that enter or leave the busiest island, likewise.
        added: bytes the busiest rank adds to others, per byte of the buffer.
        beside: messages the busiest rank sends and receives beside those of its hops.
    """

    near_hops: int
    far_hops: int
    near_share: float
    far_share: float
    added: float
    beside: int


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
    far_hops, near_hops = _longest_way(programs, island)
    messages = max(
        sum(map(len, steps.sends.values())) + sum(map(len, steps.receives.values()))
        for steps in programs
    )
    return Shape(
        near_hops,
        far_hops,
        max(*sent, *received) / elements,
        max(*out, *into) / elements,
        max(_added(steps) for steps in programs) / elements,
        max(0, messages - 2 * (near_hops + far_hops)),
    )


def _added(steps: Program) -> int:
    kinds = (Kind.RECEIVE_REDUCE, Kind.REDUCE)
    return sum(step.target.size for step in steps.steps if step.kind in kinds)


def _longest_way(programs: Sequence[Program], island: Sequence[int]) -> tuple[int, int]:
    """(far hops, near hops) of the longest chain of steps over all ranks."""
    waits = [list(steps.waits) for steps in programs]
    length = [[(0, 0)] * len(steps.steps) for steps in programs]
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
    longest = (0, 0)
    while ready:
        rank, number = ready.pop()
        here = length[rank][number]
        longest = max(longest, here)
        after = [(rank, later, here) for later in programs[rank].blocks[number]]
        if programs[rank].steps[number].kind is Kind.SEND:
            peer, other = partner[rank, number]
            beyond = programs[rank].steps[number].peer >= len(programs)
            far = 2 if beyond else int(island[rank] != island[peer])
            after.append((peer, other, (here[0] + far, here[1] + (not far))))
        for at, later, way in after:
            length[at][later] = max(length[at][later], way)
            waits[at][later] -= 1
            if not waits[at][later]:
                ready.append((at, later))
    return longest


def priced(name: str, what: Shape, links: Links, chunk_bytes: int) -> Algorithm:
    """The algorithm as `predict` prices it.

    Both kinds of link work at the same time; the slower one sets the time and the other adds the
    time of one chunk, which is how far ahead it must be.
    """
    latency = what.near_hops * links.near.latency_s + what.far_hops * links.far.latency_s
    latency += what.beside * _OVERHEAD * links.near.latency_s
    # Inside a host a rank's own processor moves the bytes and then adds them up.
    near = what.near_share / links.near.bytes_per_s + what.added / links.add_bytes_per_s
    far = what.far_share / links.far.bytes_per_s
    if far > near:
        share, rate = what.far_share, links.far.bytes_per_s
    else:
        share, rate = what.near_share, what.near_share / near if near else links.near.bytes_per_s
    hops = max(0, what.near_hops + what.far_hops - 1)
    # The engine's chunks are of a fixed size: a pipeline of D hops fills in D chunk times, or in
    # less when the buffer is smaller than that; predict's best-chunk term is its lower envelope.
    fill = hops * chunk_bytes / rate if hops and min(near, far) else 0.0
    main = Phase(latency, share, rate, 0.0, 0.0, hops_s=min(fill, latency))
    return Algorithm(name, (main,))


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
