"""How a collective moves its bytes: steps and bytes per link of each algorithm.

An algorithm is a row of phases; a phase has a fixed time and bytes over its narrowest link:

    t(S) = latency + t_w + 2 √(hops · t_w),    t_w = w/B · (1 + (1/start − 1) · h / (w + h))

with S the bytes of the buffer, w = share · S the bytes over the link and B its peak rate. t_w
grows from the rate start · B of small messages to B; h is where half of that is done. The root
is the fill of a pipeline of D hops with the best number of chunks: D + K chunks take
(D + K)(α + t_w/K), least at K = √(D t_w/α); ``hops`` is D·α and 0 without a pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pluribus.predict.link_classes import Links, Path

ALL_REDUCE = "all_reduce"
ALL_GATHER = "all_gather"
REDUCE_SCATTER = "reduce_scatter"
ALL_TO_ALL = "all_to_all"
BROADCAST = "broadcast"
SEND = "send"


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Where the members of a group sit: equally many on each node.

    Attributes:
        members_per_node: chips of one node in the group.
        nodes: how many nodes it spans.
        rails: network adapters of a node that the group can use; None is one per member.
        groups_per_nic: groups that use each adapter at the same time, this one included.
    """

    members_per_node: int
    nodes: int = 1
    rails: int | None = None
    groups_per_nic: int = 1

    @property
    def members(self) -> int:
        return self.members_per_node * self.nodes

    @property
    def lanes(self) -> int:
        """Adapters of one node that carry the group's traffic at once."""
        return min(self.members_per_node, self.rails or self.members_per_node)


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of an algorithm; see the formula above.

    Attributes:
        latency_s: launch and steps, without bytes.
        share: bytes over the narrowest link per byte of the buffer.
        bytes_per_s: peak rate of that link.
        slow: 1/start − 1.
        half_bytes: h.
        hops_s: D·α of a pipeline; 0 without one.
    """

    latency_s: float
    share: float
    bytes_per_s: float
    slow: float
    half_bytes: float
    hops_s: float = 0.0

    def seconds(self, num_bytes: float | np.ndarray) -> float | np.ndarray:
        """Seconds for a buffer of this many bytes (one number or an array)."""
        wire = self.share * num_bytes
        moving = wire / self.bytes_per_s
        if self.slow:
            moving = moving * (1 + self.slow * self.half_bytes / (wire + self.half_bytes))
        if self.hops_s:
            moving = moving + 2 * (self.hops_s * moving) ** 0.5
        return self.latency_s + moving


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to run a collective on a given group and links."""

    name: str
    phases: tuple[Phase, ...]

    def seconds(self, num_bytes: float | np.ndarray) -> float | np.ndarray:
        total = self.phases[0].seconds(num_bytes)
        for phase in self.phases[1:]:
            total = total + phase.seconds(num_bytes)
        return total


def algorithms(op: str, group: GroupShape, links: Links) -> Iterator[Algorithm]:
    """Every algorithm that can run the collective on the group.

    A rail-aligned algorithm (``rail_…``) keeps the traffic between nodes on adapters of equal
    rank: what a member has for another node goes first, inside the node, to the member on that
    rail. Between nodes each rail then carries its own part.
    """
    many = group.nodes > 1
    if op == ALL_REDUCE:
        yield _ring(group, links, rounds=2)
        if not many and links.intra.link_class.in_network_peak and group.members > 2:
            yield _in_network(group, links.intra)
        if many:
            yield _tree(group, links)
        if many and group.members_per_node > 1:
            yield from _rail_all_reduce(group, links)
    elif op in (ALL_GATHER, REDUCE_SCATTER):
        yield _ring(group, links, rounds=1)
        if many and group.members_per_node > 1:
            yield Algorithm("rail_ring", (_inside(group, links, 1), _across(group, links, 1)))
    elif op == ALL_TO_ALL:
        yield _direct(group, links)
        if many and group.members_per_node > 1:
            yield _rail_direct(group, links)
    elif op == BROADCAST:
        yield from _broadcast(group, links)
    else:
        assert op == SEND, op
        yield _send(group, links)


def _ring(group: GroupShape, links: Links, rounds: int) -> Algorithm:
    """One ring over all members (Patarasuk and Yuan 2009), as many rings as lanes.

    A step ends when its slowest hop ends, so with several nodes every step takes the network's α:
    this is what makes a flat ring collapse at scale.
    """
    n = group.members
    share = rounds * (n - 1) / n
    path = links.nic if group.nodes > 1 else links.intra
    latency = path.launch_s + rounds * (n - 1) * path.step_s
    inside = share + _own_copy(group, links.intra) / rounds
    return Algorithm("ring", (_narrowest(group, links, latency, inside, share / group.lanes),))


def _tree(group: GroupShape, links: Links) -> Algorithm:
    """A double binary tree between nodes (Sanders, Speck, Träff 2009), a chain inside a node.

    Up and down the tree: every node receives and sends the buffer twice; each of the two trees
    carries half of it, and what is an inner node of one is a leaf of the other.
    """
    depth = math.ceil(math.log2(group.nodes)) * links.nic.step_s
    depth += (group.members_per_node - 1) * links.intra.step_s
    latency = links.nic.launch_s + 2 * depth
    phase = _narrowest(group, links, latency, 2.0, 2.0 / group.lanes, hops_s=2 * depth)
    return Algorithm("tree", (phase,))


def _in_network(group: GroupShape, path: Path) -> Algorithm:
    """The switch adds (NVLink SHARP): a member sends its buffer once and its finished part once,
    (n + 1)/n buffers where a ring moves 2 (n − 1)/n (Klenk et al. 2020, ISCA, §III)."""
    kind, n = path.link_class, group.members
    latency = kind.in_network_launch_us * 1e-6 + 2 * path.step_s
    phase = _phase(path, path.in_network_bytes_per_s, latency, (n + 1) / n, 0.0)
    return Algorithm("in_network", (phase,))


def _rail_all_reduce(group: GroupShape, links: Links) -> Iterator[Algorithm]:
    """Reduce-scatter inside the nodes, all-reduce along each rail, all-gather inside."""
    inside = _inside(group, links, 1)
    yield Algorithm("rail_ring", (inside, _across(group, links, 2), inside))
    depth = 2 * math.ceil(math.log2(group.nodes)) * links.nic.step_s
    latency = links.nic.launch_s + depth
    across = _on_nic(group, links, latency, 2.0 / group.lanes, hops_s=depth)
    yield Algorithm("rail_tree", (inside, across, inside))


def _inside(group: GroupShape, links: Links, rounds: int) -> Phase:
    """A ring over the members of a node."""
    path, m = links.intra, group.members_per_node
    latency = path.launch_s + rounds * (m - 1) * path.step_s
    return _on_node(group, links, latency, rounds * (m - 1) / m)


def _across(group: GroupShape, links: Links, rounds: int) -> Phase:
    """A ring over the nodes on every rail, each with its part of the buffer."""
    path, nodes = links.nic, group.nodes
    latency = path.launch_s + rounds * (nodes - 1) * path.step_s
    return _on_nic(group, links, latency, rounds * (nodes - 1) / nodes / group.lanes)


def _direct(group: GroupShape, links: Links) -> Algorithm:
    """Every member sends to every other at once: one step to meet, and waves that double."""
    n, m = group.members, group.members_per_node
    path = links.nic if group.nodes > 1 else links.intra
    latency = path.launch_s + (1 + math.log2(n)) * path.step_s
    inside = (m - 1) / n + _own_copy(group, links.intra)
    outside = (n - m) / n * m / group.lanes
    return Algorithm("direct", (_narrowest(group, links, latency, inside, outside),))


def _own_copy(group: GroupShape, path: Path) -> float:
    """A member's own part, 1/n of the buffer, in bytes of link that take as long as its copy.

    It weighs most between two chips, where it is as much as what comes over the link. An
    all-reduce shows half of it (fits on two, four and eight H100 agree on both).
    """
    if not path.link_class.own_copy:
        return 0.0
    rate = path.bytes_per_s(group.members_per_node)
    return rate / (path.link_class.own_copy * path.nominal) / group.members


def _rail_direct(group: GroupShape, links: Links) -> Algorithm:
    """First inside the node to the member on the right rail, then along the rail."""
    m, nodes = group.members_per_node, group.nodes
    intra, nic = links.intra, links.nic
    latency = intra.launch_s + (1 + math.log2(m)) * intra.step_s
    first = _on_node(group, links, latency, (m - 1) / m)
    share = (nodes - 1) / nodes * m / group.lanes
    latency = nic.launch_s + (1 + math.log2(nodes)) * nic.step_s
    return Algorithm("rail_direct", (first, _on_nic(group, links, latency, share)))


def _send(group: GroupShape, links: Links) -> Algorithm:
    """One message from one member to one other, on another node if the group spans several."""
    path = links.nic if group.nodes > 1 else links.intra
    latency = path.launch_s + path.step_s
    rate = path.bytes_per_s(2) / (group.groups_per_nic if group.nodes > 1 else 1)
    return Algorithm("direct", (_phase(path, rate, latency, 1.0, 0.0),))


def _broadcast(group: GroupShape, links: Links) -> Iterator[Algorithm]:
    """Pipelined along a chain of all members, or a binary tree of nodes with chains inside."""
    path = links.nic if group.nodes > 1 else links.intra
    hops = (group.members - 1) * path.step_s
    share = 1 / group.lanes
    chain = _narrowest(group, links, path.launch_s + hops, 1.0, share, hops_s=hops)
    yield Algorithm("ring", (chain,))
    if group.nodes > 1:
        hops = math.ceil(math.log2(group.nodes)) * links.nic.step_s
        hops += (group.members_per_node - 1) * links.intra.step_s
        tree = _narrowest(group, links, path.launch_s + hops, 1.0, share, hops_s=hops)
        yield Algorithm("tree", (tree,))


def _narrowest(
    group: GroupShape,
    links: Links,
    latency: float,
    inside: float,
    outside: float,
    hops_s: float = 0.0,
) -> Phase:
    """Both kinds of link work at the same time; the slower one sets the time.

    Args:
        inside: bytes over a member's link inside the node, per byte of the buffer.
        outside: the same over an adapter.
    """
    intra = _on_node(group, links, latency, inside, hops_s)
    if group.nodes == 1:
        return intra
    nic = _on_nic(group, links, latency, outside, hops_s)
    if group.members_per_node == 1:
        return nic
    return max(intra, nic, key=lambda phase: phase.share / phase.bytes_per_s)


def _on_node(
    group: GroupShape, links: Links, latency: float, share: float, hops_s: float = 0.0
) -> Phase:
    rate = links.intra.bytes_per_s(group.members_per_node)
    return _phase(links.intra, rate, latency, share, hops_s)


def _on_nic(
    group: GroupShape, links: Links, latency: float, share: float, hops_s: float = 0.0
) -> Phase:
    rate = links.nic.bytes_per_s(2) / group.groups_per_nic
    return _phase(links.nic, rate, latency, share, hops_s)


def _phase(path: Path, rate: float, latency: float, share: float, hops_s: float) -> Phase:
    kind = path.link_class
    return Phase(latency, share, rate, 1 / kind.start - 1, kind.half_kib * 1024, hops_s)
