"""Measures links with messages: latency, rate and loss between pairs of ranks, and this host's own
speeds of coding, copying and adding.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from pluribus.comm.codecs.registry import codec as codec_named
from pluribus.comm.costs import TYPICAL, LinkCost, Links
from pluribus.core.units import KIB, MIB

if TYPE_CHECKING:
    from pluribus.comm.group import Group

_SMALL_ROUNDS, _LARGE_ROUNDS = 8, 3
_MORE_SECONDS, _MOST_SMALL = 0.015, 64  # more small rounds where they are quick
_FIRST_BYTES = 128 * KIB
_LARGE_BYTES = 256 * KIB, 8 * MIB
_LARGE_SECONDS = 0.03  # that a large message should take: long beside what disturbs it
_MOST_ROUNDS = 4  # of pairs of islands
_UNEQUAL = 1.5  # links that differ by less are taken to be alike: measuring differs by as much
_MOST_IN_TURN = 8  # ranks; of more, disjoint pairs are measured at the same time

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one core of this host, in bytes of fp32 per second.

    Attributes:
        code: encoding and decoding, 0 without a codec.
        copy: device to host, or host memory to host memory.
        add: one buffer to another.
    """

    code: float
    copy: float
    add: float


def links(group: Group) -> Links:
    """Both kinds of link of a group; every member calls it, and all get the same. Under 2 s on
    links of 10 Mbit/s and more.

    All islands are measured inside at the same time: latency between their first two ranks, rate
    on a ring of all members, since they share memory and cores as in a collective. Between islands
    the first ranks meet in rounds of disjoint pairs, a few rounds if there are many. The slowest
    link of each kind counts, as it would in a collective.
    """
    layout = group.layout
    islands = [island for island in layout.leaves() if len(island) > 1]
    inside = [(island[0], island[1]) for island in islands]
    heads = [members[0] for members in layout.islands]
    across = [[(heads[a], heads[b]) for a, b in one] for one in rounds(len(heads))][:_MOST_ROUNDS]
    near = _slowest(_measured(group, [inside] if inside else []))
    guess = near.bytes_per_s if near is not None else 0.0
    rate, adding, coding = _together(group, islands, guess)
    if near is not None:
        near = replace(near, bytes_per_s=rate)
    far = _slowest(_measured(group, across))
    return Links(near or far or TYPICAL.near, far or near or TYPICAL.far, adding, coding, guess)


def rails(group: Group) -> tuple[float, ...]:
    """Bytes per second of every rank's own link out of its island, or () where they are about the
    same; every member calls it, and all get the same.

    One pair after the other, each rank with the one on its rail in the next island: together they
    would measure what they share. In larger groups that takes too long; there all count as equal.
    """
    layout = group.layout
    if layout.is_flat or layout.size > _MOST_IN_TURN:
        return ()
    pairs = set()
    for island, members in enumerate(layout.islands):
        others = layout.islands[(island + 1) % len(layout.islands)]
        for position, rank in enumerate(members):
            partner = others[position % len(others)]
            pairs.add((min(rank, partner), max(rank, partner)))
    found = _measured(group, [[pair] for pair in sorted(pairs)])
    rates = tuple(
        max(link.bytes_per_s for pair, link in found.items() if rank in pair)
        for rank in range(layout.size)
    )
    return rates if max(rates) > _UNEQUAL * min(rates) else ()


def matrix(group: Group) -> dict[tuple[int, int], LinkCost]:
    """Every pair (lower rank, higher rank); every member calls it, and all get the same."""
    plan = rounds(group.size())
    if group.size() <= _MOST_IN_TURN:
        plan = [[pair] for one in plan for pair in one]
    return _measured(group, plan)


def speeds(group: Group) -> Speeds:
    """This host's, measured in about 50 ms."""
    values, other = torch.rand(2, MIB)
    name = group.options.codec
    coding = _coding(name) if name != "none" else 0.0
    ones, sums = values.numpy(), other.numpy()
    staging = group.staging(values)
    if staging is None:
        copy = _rate(lambda: np.copyto(sums, ones))
    else:
        host = staging.host(values)
        adapter = staging.adapter
        copy = _rate(lambda: adapter.fetch(host, values, adapter.mark()).wait())
    return Speeds(coding, copy, _rate(lambda: np.add(sums, ones, out=sums)))


def _coding(name: str) -> float:
    """Bytes per second that are encoded and decoded."""
    codec = codec_named(name)
    values, other = torch.rand(2, MIB)
    coded = torch.empty(codec.num_bytes(MIB), dtype=torch.uint8)
    residual = torch.zeros(MIB) if codec.feeds_back else None

    def code() -> None:
        codec.encode(values, coded, residual)
        codec.decode(coded, other, add=True)

    return _rate(code)


def _rate(call: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 4 * MIB / best


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """All pairs of ``count`` in rounds of disjoint pairs (the circle method), lower one first."""
    ring: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(ring) - 1):
        pairs = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        found.append(
            sorted((min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None)
        )
        ring[1:] = [ring[-1], *ring[1:-1]]
    return found


def _measured(group: Group, plan: Sequence[Pairs]) -> dict[tuple[int, int], LinkCost]:
    """Links of all pairs of a plan, known to all."""
    pairs = [pair for one in plan for pair in one]
    found = torch.zeros(len(pairs), 3, dtype=torch.float64)
    for number, (one, other) in enumerate(pairs):
        link = _ping(group, one, other) if group.rank() in (one, other) else None
        if link is not None:
            values = [link.latency_s, link.bytes_per_s, link.loss]
            found[number] = torch.tensor(values, dtype=torch.float64)
    if pairs:
        group.allreduce([found]).wait()  # only one rank has other figures than zeros
    return {pair: LinkCost(*values) for pair, values in zip(pairs, found.tolist(), strict=True)}


def _together(
    group: Group, islands: Sequence[Sequence[int]], guess: float
) -> tuple[float, float, dict[str, float]]:
    """Bytes per second of the slowest rank: when everybody sends to the next of its island, when
    everybody adds, and by codec, when everybody codes."""
    own = next((island for island in islands if group.rank() in island), None)
    low, high = _LARGE_BYTES
    size = min(high, max(low, int(guess * _LARGE_SECONDS)))
    sent, received = torch.zeros(2, size, dtype=torch.uint8)
    best = math.inf
    for _ in range(_LARGE_ROUNDS):
        group.barrier().wait()
        if own is None:
            continue
        at = own.index(group.rank())
        start = time.perf_counter()
        work = group.send([sent], own[(at + 1) % len(own)], 0)
        group.recv([received], own[at - 1], 0).wait()
        work.wait()
        best = min(best, time.perf_counter() - start)
    group.barrier().wait()
    ones, sums = torch.rand(2, MIB).numpy()
    adding = _rate(lambda: np.add(sums, ones, out=sums))
    sending = math.inf if own is None else size / best
    codecs = [name for name in (group.options.codec,) if name != "none"]
    figures = [sending, adding, *map(_coding, codecs)]
    slowest = torch.tensor(figures, dtype=torch.float64)
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(dist.ReduceOp.MIN)
    group.allreduce([slowest], options).wait()
    sending, adding, *coding = slowest.tolist()
    return sending, adding, dict(zip(codecs, coding, strict=True))


def _slowest(found: dict[tuple[int, int], LinkCost]) -> LinkCost | None:
    if not found:
        return None
    each = found.values()
    return LinkCost(
        max(link.latency_s for link in each),
        min(link.bytes_per_s for link in each),
        max(link.loss for link in each),
    )


def _ping(group: Group, one: int, other: int) -> LinkCost | None:
    """Timed by ``one``; None on the other."""
    first = group.rank() == one
    peer = other if first else one
    before = group.sent_packets(peer)

    def exchange(data: torch.Tensor) -> float:
        """Seconds until the answer to ``data``, a byte, is back."""
        start = time.perf_counter()
        (group.send if first else group.recv)([data], peer, 0).wait()
        (group.recv if first else group.send)([data[:1]], peer, 0).wait()
        return time.perf_counter() - start

    def quick(rounds: int) -> list[float]:
        return [exchange(torch.zeros(64, dtype=torch.uint8)) for _ in range(rounds)]

    times = quick(_SMALL_ROUNDS)
    guess = exchange(torch.zeros(_FIRST_BYTES, dtype=torch.uint8))
    low, high = _LARGE_BYTES
    size = torch.tensor(
        [
            min(high, max(low, int(_FIRST_BYTES * _LARGE_SECONDS / guess))),
            min(_MOST_SMALL, int(_MORE_SECONDS / min(times))),
        ]
    )
    (group.send if first else group.recv)([size], peer, 0).wait()
    # The usual one: the best is of threads that happened to be awake.
    small = statistics.median(times + quick(int(size[1])))
    data = torch.zeros(int(size[0]), dtype=torch.uint8)
    large = min(exchange(data) for _ in range(_LARGE_ROUNDS))  # whatever disturbs makes it slower
    if not first:
        return None
    resent, sent = (b - a for a, b in zip(before, group.sent_packets(peer), strict=True))
    # If the small messages were disturbed, they say nothing of what the large one took.
    rate = data.numel() / (large - small if 2 * small < large else large)
    return LinkCost(small / 2, rate, resent / sent if sent else 0.0)
