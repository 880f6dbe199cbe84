"""Seconds of collectives and messages: the quickest algorithm on the links they cross."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pluribus.hardware.cluster import Cluster, Pool
from pluribus.predict.algorithms import ALL_REDUCE, SEND, Algorithm, GroupShape, algorithms
from pluribus.predict.crossing import crossing
from pluribus.predict.curves import curve_all_reduce_seconds, curve_message_seconds
from pluribus.predict.link_classes import Links, links_of
from pluribus.predict.operator_tables import operator_times
from pluribus.spec.profile import Profile

POINT_TO_POINT = "point_to_point"


@dataclass(frozen=True, slots=True)
class Choice:
    """The quickest way to run a collective.

    Attributes:
        seconds: a number, or an array with one per size.
        algorithm: its name, or an array of names.
    """

    seconds: float | np.ndarray
    algorithm: str | np.ndarray


def collective_seconds(
    op: str,
    num_bytes: float | np.ndarray,
    group: GroupShape,
    links: Links,
    among: tuple[str, ...] = (),
) -> Choice:
    """Seconds of a collective by its quickest algorithm.

    Args:
        op: ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``broadcast`` or
            ``send``.
        num_bytes: the whole buffer: what each member sums, gathers in the end, holds before it
            scatters, or sends in all. An array is answered size by size.
        among: names of the algorithms to choose from; empty is all that fit.
    """
    if group.members < 2:
        return Choice(0.0 * num_bytes, "none")
    known = _algorithms(op, group, links, among)
    if isinstance(num_bytes, np.ndarray):
        table = np.stack([algorithm.seconds(num_bytes) for algorithm in known])
        names = np.array([algorithm.name for algorithm in known])
        return Choice(table.min(axis=0), names[table.argmin(axis=0)])
    if len(known) == 1:
        return Choice(known[0].seconds(num_bytes), known[0].name)
    seconds, name = min((algorithm.seconds(num_bytes), algorithm.name) for algorithm in known)
    return Choice(seconds, name)


@functools.cache
def _algorithms(
    op: str, group: GroupShape, links: Links, among: tuple[str, ...]
) -> tuple[Algorithm, ...]:
    known = tuple(a for a in algorithms(op, group, links) if not among or a.name in among)
    assert known, f"{op} on {group} has none of {among}"
    return known


def ring_all_reduce_seconds(
    num_bytes: float, members: int, latency_s: float, bytes_per_s: float
) -> float:
    """A ring: 2 (n − 1) steps of n-th parts (Patarasuk & Yuan 2009, eq. 3)."""
    if members < 2:
        return 0.0
    steps = 2 * (members - 1)
    return steps * (latency_s + num_bytes / members / bytes_per_s)


def message_seconds(
    num_bytes: float,
    source: str,
    target: str,
    cluster: Cluster,
    profile: Profile | None,
    flows: float = 1,
) -> float:
    """One message between two chips, given by address.

    Args:
        flows: messages on the same link at once, where it was measured as a curve.
    """
    if profile and profile.curves and source != target:
        seconds = curve_message_seconds(num_bytes, source, target, cluster, profile, flows)
        if seconds is not None:
            return seconds
    pools = _pool(source), _pool(target)
    measured = profile and profile.link(*pools, POINT_TO_POINT)
    if measured:
        return measured.latency_s + num_bytes / measured.bytes_per_s
    pool = cluster.pool_of(source)
    if pool is cluster.pool_of(target) and source != target:
        same_node = source.rpartition("/")[0] == target.rpartition("/")[0]
        # The other chips of a node send beside this one.
        crowd = pool.chips_per_node // pool.adapters
        group = GroupShape(2) if same_node else GroupShape(1, 2, groups_per_nic=crowd)
        return collective_seconds(SEND, num_bytes, group, links_of(pool)).seconds
    return cluster.link(source, target).seconds(num_bytes)


def group_all_reduce_seconds(
    num_bytes: float,
    chips: Sequence[str],
    cluster: Cluster,
    profile: Profile | None,
    rings_per_crossing: int = 1,
    flows: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """Sums one buffer over chips that may sit in several pools.

    Inside each pool the quickest all-reduce, between pools the quickest `crossing` (two levels:
    reduce-scatter inside, all-reduce across, all-gather inside; Goyal et al. 2017 §4). A link
    between pools is shared by every group that crosses it at the same time.

    Args:
        num_bytes: of the buffer on one chip.
        chips: addresses, one per member.
        rings_per_crossing: groups that cross the pools at the same time.
        flows: rings that leave each node at once, for links that were measured as curves.
    """
    if len(chips) < 2:
        return 0.0
    if profile and profile.curves:
        seconds = curve_all_reduce_seconds(num_bytes, chips, cluster, profile, flows)
        if seconds is not None:
            return seconds
    on_node = Counter(chip.rpartition("/")[0] for chip in chips)
    nodes: dict[str, list[int]] = {}
    for node, count in on_node.items():
        nodes.setdefault(node.rpartition("/")[0], []).append(count)
    members = {pool: sum(counts) for pool, counts in nodes.items()}
    pools = sorted(members)
    if len(pools) == 2 and len(chips) == 2:
        measured = profile and profile.link(*pools, ALL_REDUCE)
        if measured:
            return measured.latency_s + num_bytes / measured.bytes_per_s
    inside = 0.0
    for address, count in members.items():
        if count > 1:
            pool = cluster.pool(address)
            times = operator_times(profile, pool.chip) if len(nodes[address]) == 1 else None
            seconds = times and times.collective(ALL_REDUCE, count, num_bytes)
            if seconds is None:
                seconds = _in_pool(num_bytes, tuple(nodes[address]), pool).seconds
            inside = max(inside, seconds)
    if len(pools) == 1:
        return inside
    return inside + crossing(num_bytes, members, cluster, rings_per_crossing).seconds


def _in_pool(num_bytes: float, members: tuple[int, ...], pool: Pool) -> Choice:
    """Sums over members spread over nodes of one pool, given how many sit on each node."""
    group = GroupShape(members[0], len(members), pool.adapters)
    if min(members) < max(members):
        # Unequal nodes have no rails in common: one flat group over one adapter each.
        group = GroupShape(1, sum(members))
    return collective_seconds(ALL_REDUCE, num_bytes, group, links_of(pool))


def _pool(chip: str) -> str:
    return chip.rsplit("/", 2)[0]
