"""Messages and sums on links whose bandwidth was measured by size and by chips that share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pluribus.hardware.cluster import Cluster
from pluribus.predict.schedule import GradientGroup
from pluribus.spec.plan import Plan, Stage
from pluribus.spec.profile import LinkCurve, Profile


def curve_message_seconds(
    num_bytes: float, source: str, target: str, cluster: Cluster, profile: Profile, flows: float = 1
) -> float | None:
    """One message between two chips while others use the same node's link.

    Args:
        num_bytes: of this message.
        flows: messages that cross at once, this one included.

    Returns:
        None where no curve was measured between the two places.
    """
    inside = node_of(source) == node_of(target)
    curves = profile.curve(_places(source, cluster), _places(target, cluster), inside)
    if not curves:
        return None
    num_bytes = max(num_bytes, 1.0)  # a message of no bytes takes as long as the smallest
    return curves[0].latency_s + num_bytes * flows / _together(curves, num_bytes, flows)


def _together(curves: Sequence[LinkCurve], num_bytes: float, flows: float) -> float:
    """Bytes/s of several messages at once: linear between the measured numbers of chips, its
    share of the fewest measured, and never more than the most measured reach."""
    first, last = curves[0], curves[-1]
    if flows <= first.chips:
        return first.bytes_per_s(num_bytes) * flows / first.chips
    if flows >= last.chips:
        return last.bytes_per_s(num_bytes)
    a, b = next((a, b) for a, b in pairwise(curves) if flows <= b.chips)
    low, high = a.bytes_per_s(num_bytes), b.bytes_per_s(num_bytes)
    return low + (high - low) * (flows - a.chips) / (b.chips - a.chips)


def curve_all_reduce_seconds(
    num_bytes: float,
    chips: Sequence[str],
    cluster: Cluster,
    profile: Profile,
    flows: Mapping[str, float],
) -> float | None:
    """A ring over the members, those of one node beside each other (Patarasuk & Yuan 2009).

    Each of its 2 (n − 1) steps ends when the slowest hop has moved an n-th of the buffer.

    Args:
        flows: rings that leave each node at once, by ``site/pool/node``; 1 where not named.

    Returns:
        None where a hop has no measured curve.
    """
    members = sorted(chips)
    count = len(members)
    if count < 2:
        return 0.0
    steps = []
    for a, b in zip(members, [*members[1:], members[0]], strict=True):
        inside = node_of(a) == node_of(b)
        shared = count if inside else max(flows.get(node_of(c), 1) for c in (a, b))
        seconds = curve_message_seconds(num_bytes / count, a, b, cluster, profile, shared)
        if seconds is None:
            return None
        steps.append(seconds)
    return 2 * (count - 1) * max(steps)


def ring_flows(plan: Plan, groups: Sequence[GradientGroup]) -> dict[str, float]:
    """Gradient rings that leave each node at once.

    Every tensor-parallel rank has a ring of its own. Members of one ring on one node leave it
    once together, and a stage works through its groups one after another.
    """
    rings: dict[tuple[int, int], float] = {}
    for group in groups:
        stages = {lane: plan.pipelines[lane[0]].stages[lane[1]] for lane in group.holders}
        here = Counter(node_of(stage.chips[0]) for stage in stages.values())
        if len(here) < 2:
            continue
        for lane, stage in stages.items():
            share = stage.tensor_parallel / here[node_of(stage.chips[0])]
            rings[lane] = max(rings.get(lane, 0.0), share)
    flows: dict[str, float] = {}
    for (p, s), share in rings.items():
        node = node_of(plan.pipelines[p].stages[s].chips[0])
        flows[node] = flows.get(node, 0.0) + share
    return flows


def message_flows(plan: Plan, scattered: bool) -> dict[str, float]:
    """Messages between neighbouring stages that leave each node at once, at most.

    Args:
        scattered: whether each tensor-parallel rank sends its part (Narayanan et al. 2021,
            arXiv 2104.04473 §4.1).
    """
    out: Counter[tuple[str, bool]] = Counter()
    for pipeline in plan.pipelines:
        for a, b in pairwise(pipeline.stages):
            if node_of(a.chips[0]) != node_of(b.chips[0]):
                # What a stage sends on and what the next sends back cross on a duplex link.
                out[node_of(a.chips[0]), True] += lanes(a, b, scattered)
                out[node_of(b.chips[0]), False] += lanes(a, b, scattered)
    flows: dict[str, float] = {}
    for (node, _), count in out.items():
        flows[node] = max(flows.get(node, 0), count)
    return flows


def lanes(a: Stage, b: Stage, scattered: bool) -> int:
    """Parts that a message between two stages is sent in at once."""
    return min(a.tensor_parallel, b.tensor_parallel) if scattered else 1


def node_of(chip: str) -> str:
    """``site/pool/node`` of a chip."""
    return chip.rpartition("/")[0]


def _places(chip: str, cluster: Cluster) -> tuple[str, ...]:
    """The names a profile may know a chip's place by, the most particular first."""
    pool = cluster.pool_of(chip)
    return pool.address, f"{pool.site}/{pool.chip.key}", pool.chip.key
