"""Sums over pools: the way over links of unlike speed, and what they put on each link."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.hardware.cluster import Cluster
from pluribus.hardware.link import LinkSpec

# Up to so many pools every ring is tried; beyond, the order of their addresses.
_ALL_RINGS = 5


@dataclass(frozen=True)
class Crossing:
    """A sum between pools.

    Attributes:
        seconds: alone on its links.
        wire: bytes it puts on each shared link in the busier direction, by the link's ends.
    """

    seconds: float
    wire: Mapping[tuple[str, str], float]


def crossing(
    num_bytes: float,
    members: Mapping[str, int],
    cluster: Cluster,
    rings: float = 1,
) -> Crossing:
    """The quickest sum of one buffer over several pools, each of which has summed its own.

    Either a ring over the pools, whose slowest link sets every step (Patarasuk and Yuan 2009,
    eq. 3), or a star: every pool sends to one that adds, which sends the sum back. A star avoids
    a slow link between two pools that both have a fast one to the third.

    Args:
        num_bytes: of one rank's buffer.
        members: ranks of each pool, each of which carries its own part across.
        rings: buffers like this one that cross at the same time and share the links.
    """
    pools = sorted(members)
    first, *others = pools
    orders = itertools.permutations(others) if len(pools) <= _ALL_RINGS else [others]
    ways = [_ring(num_bytes, (first, *order), members, cluster, rings) for order in orders]
    if len(pools) > 2:
        ways += [_star(num_bytes, hub, members, cluster, rings) for hub in pools]
    return min(ways, key=lambda way: way.seconds)


def _ring(
    num_bytes: float,
    pools: tuple[str, ...],
    members: Mapping[str, int],
    cluster: Cluster,
    rings: float,
) -> Crossing:
    moved = 2 * (len(pools) - 1) / len(pools) * num_bytes
    hops = list(zip(pools, [*pools[1:], pools[0]], strict=True))
    ways = [_Way.of(a, b, members, cluster) for a, b in hops]
    latency = max(way.latency_s for way in ways)
    return _done(2 * (len(pools) - 1) * latency, moved, ways, rings)


def _star(
    num_bytes: float, hub: str, members: Mapping[str, int], cluster: Cluster, rings: float
) -> Crossing:
    others = [pool for pool in members if pool != hub]
    ways = [_Way.of(other, hub, members, cluster) for other in others]
    # The hub's ranks take in what all others send.
    own = cluster.pool(hub).adapter_bytes_per_s * members[hub] / len(others)
    ways = [replace(way, bytes_per_s=min(way.bytes_per_s, own)) for way in ways]
    # In, and then out in the other direction: twice as long, as many bytes each way.
    half = _done(max(way.latency_s for way in ways), num_bytes, ways, rings)
    return Crossing(2 * half.seconds, half.wire)


@dataclass(frozen=True)
class _Way:
    """From one pool to another: latency, bytes/s of one ring's ranks, and the shared link.

    Attributes:
        direction: the link's ends in the order of this way; None without a link.
    """

    latency_s: float
    bytes_per_s: float
    link: LinkSpec | None
    direction: tuple[str, str] | None

    @classmethod
    def of(cls, a: str, b: str, members: Mapping[str, int], cluster: Cluster) -> _Way:
        link, spec = cluster.between(a, b)
        # After the inner reduce-scatter every member carries its own part across.
        rate = link.bytes_per_s * min(members[a], members[b])
        ahead = spec and spec.between[0] in (a, a.partition("/")[0])
        direction = spec and (spec.between if ahead else spec.between[::-1])
        return cls(link.latency_s, rate, spec, direction)


def _done(latency: float, moved: float, ways: Sequence[_Way], rings: float) -> Crossing:
    """All ways at once, each moving as many bytes."""
    shared = Counter(way.direction for way in ways if way.direction)
    rate = min(way.bytes_per_s for way in ways)
    wire: dict[tuple[str, str], float] = {}
    for way in ways:
        if way.link and way.direction:
            at_once = rings * shared[way.direction]
            rate = min(rate, way.link.bytes_per_s / at_once)
            ends = way.link.between
            wire[ends] = max(wire.get(ends, 0.0), moved * at_once)
    return Crossing(latency + moved / rate, wire)
