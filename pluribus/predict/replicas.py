"""What replicas of the same layers say to each other: gradient sums, and what ZeRO gathers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pluribus.hardware.pool import Pool
from pluribus.predict.algorithms import GroupShape
from pluribus.predict.degrees import Degrees, Parameters
from pluribus.predict.link_classes import Links, links_of
from pluribus.predict.operators import Work
from pluribus.predict.software import Software
from pluribus.predict.talk import group_work, groups_per_nic, regular_group

# Share of a collective that an overlapping program still waits for; a typical figure.
NEVER_HIDDEN = 0.1


def exposed_seconds(seconds: float, under: float) -> float:
    """What is left to wait for of a collective that runs under so many seconds of compute."""
    return max(NEVER_HIDDEN * seconds, seconds - under)


@dataclass(frozen=True)
class Replicas:
    """Where the ranks sit that hold the same weights.

    Attributes:
        shared: all replicas of one rank.
        experts: of them those with the same experts.
        links: of their pool.
    """

    shared: GroupShape
    experts: GroupShape
    links: Links

    @classmethod
    def regular(cls, degrees: Degrees, pool: Pool) -> Replicas:
        """Nodes filled by tp, then cp, then dp; ep counts from the innermost replica."""
        experts = max(1, round(degrees.expert_replicas))
        return cls(
            regular_group(degrees.replicas, degrees.tp, pool),
            regular_group(experts, degrees.tp * degrees.ep, pool),
            links_of(pool),
        )

    @classmethod
    def of_chips(
        cls, chips: Sequence[str], degrees: Degrees, pool: Pool, *, crowded: bool = False
    ) -> Replicas:
        """Of the chips of one stage, or of several that divide their work alike.

        Args:
            crowded: whether the other chips of their nodes are in groups like theirs.
        """
        return cls(
            group_of(chips[:: degrees.tp], pool, crowded),
            group_of(chips[:: degrees.tp * degrees.ep], pool, crowded),
            links_of(pool),
        )


def group_of(chips: Sequence[str], pool: Pool, crowded: bool = False) -> GroupShape:
    """The shape of a group of chips of one pool. Unequal nodes have no rails in common: they
    count as one flat group over one adapter each."""
    counts = Counter(chip.rpartition("/")[0] for chip in chips)
    most = max(counts.values())
    if min(counts.values()) < most:
        return GroupShape(1, len(chips))
    crowd = groups_per_nic(most, pool) if crowded else 1
    return GroupShape(most, len(counts), pool.adapters, crowd)


def sync_work(
    parameters: Parameters, zero: int, replicas: Replicas, software: Software, element: float
) -> Work:
    """The gradients of one step over the replicas of one stage, by ZeRO's stage.

    ZeRO 1 and 2 scatter the sums and gather the updated weights; ZeRO 3 scatters only, as its
    weights are gathered where they are used (Rajbhandari et al. 2019, arXiv 1910.02054 §7).

    Args:
        element: bytes of a weight in computing.
    """

    if software.frozen:
        return Work()

    def each(num_parameters: float, group: GroupShape) -> Work:
        gradients = num_parameters * software.gradient_sync_bytes
        if not zero:
            return group_work("all_reduce", gradients, group, replicas.links)
        work = group_work("reduce_scatter", gradients, group, replicas.links)
        if zero < 3:
            work += group_work("all_gather", num_parameters * element, group, replicas.links)
        return work

    return _both(parameters, replicas, each)


def gather_work(parameters: Parameters, replicas: Replicas, element: float) -> Work:
    """ZeRO 3: the weights of one stage gathered for one micro-batch's forward and again for its
    backward."""

    def each(num_parameters: float, group: GroupShape) -> Work:
        return group_work("all_gather", num_parameters * element, group, replicas.links) * 2

    return _both(parameters, replicas, each)


def gather_wait(blocks: int, replicas: Replicas, software: Software) -> float:
    """ZeRO 3: seconds that the replicas wait for one another in one micro-batch, with a gather
    before each block's forward, another before its backward and a scatter after it."""
    return 3 * blocks * software.gather_wait_s * math.log2(replicas.shared.members)


def _both(
    parameters: Parameters, replicas: Replicas, each: Callable[[float, GroupShape], Work]
) -> Work:
    """What all replicas say about shared weights, and those with the same experts about these."""
    work = Work()
    for num_parameters, group in (
        (parameters.shared, replicas.shared),
        (parameters.experts, replicas.experts),
    ):
        if num_parameters and group.members > 1:
            work += each(num_parameters, group)
    return work
