"""Seconds of collectives from latency α and bandwidth β of the links they cross."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pluribus.hardware.cluster import Cluster
from pluribus.spec.profile import Profile

ALL_REDUCE = "all_reduce"
POINT_TO_POINT = "point_to_point"


def ring_all_reduce_seconds(
    num_bytes: float, members: int, latency_s: float, bytes_per_s: float
) -> float:
    """A ring: 2 (n − 1) steps of n-th parts (Patarasuk & Yuan 2009, eq. 3)."""
    if members < 2:
        return 0.0
    steps = 2 * (members - 1)
    return steps * (latency_s + num_bytes / members / bytes_per_s)


def message_seconds(
    num_bytes: float, source: str, target: str, cluster: Cluster, profile: Profile | None
) -> float:
    """One message between two chips, given by address."""
    pools = _pool(source), _pool(target)
    measured = profile and profile.link(*pools, POINT_TO_POINT)
    if measured:
        return measured.latency_s + num_bytes / measured.bytes_per_s
    return cluster.link(source, target).seconds(num_bytes)


def group_all_reduce_seconds(
    num_bytes: float,
    chips: Sequence[str],
    cluster: Cluster,
    profile: Profile | None,
    rings_per_crossing: int = 1,
) -> float:
    """Sums one buffer over chips that may sit in several pools.

    Inside each pool a ring, between pools one more (two levels: reduce-scatter inside,
    all-reduce across, all-gather inside; Goyal et al. 2017 §4). A link between pools is shared
    by every group that crosses it at the same time.

    Args:
        num_bytes: of the buffer on one chip.
        chips: addresses, one per member.
        rings_per_crossing: groups that cross the pools at the same time.
    """
    if len(chips) < 2:
        return 0.0
    members = Counter(_pool(chip) for chip in chips)
    pools = sorted(members)
    if len(pools) == 2 and len(chips) == 2:
        measured = profile and profile.link(*pools, ALL_REDUCE)
        if measured:
            return measured.latency_s + num_bytes / measured.bytes_per_s
    inside = 0.0
    for address, count in members.items():
        pool = cluster.pool(address)
        nodes = {chip.rsplit("/", 1)[0] for chip in chips if _pool(chip) == address}
        if len(nodes) == 1:
            latency_s, rate = pool.intra_latency_us * 1e-6, pool.intra_bytes_per_s
        else:
            latency_s, rate = pool.nic_latency_us * 1e-6, pool.nic_bytes_per_s
        inside = max(inside, ring_all_reduce_seconds(num_bytes, count, latency_s, rate))
    if len(pools) == 1:
        return inside
    first = {address: next(c for c in chips if _pool(c) == address) for address in pools}
    latency, rate = 0.0, float("inf")
    for a, b in zip(pools, [*pools[1:], pools[0]], strict=True):
        link = cluster.link(first[a], first[b])
        latency = max(latency, link.latency_s)
        # After the inner reduce-scatter every member carries its own part across.
        lanes = min(members[a], members[b])
        spec = cluster.link_between_pools(a, b)
        shared = spec.bytes_per_s / rings_per_crossing if spec else float("inf")
        rate = min(rate, link.bytes_per_s * lanes, shared)
    return inside + ring_all_reduce_seconds(num_bytes, len(pools), latency, rate)


def _pool(chip: str) -> str:
    return chip.rsplit("/", 2)[0]
