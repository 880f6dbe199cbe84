"""What the ranks of a stage say to each other: seconds by what they cross.

Ranks fill nodes by tensor, then context, then data parallelism; a group whose members lie
``inner`` chips apart has as many of them on a node as the node holds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from pluribus.hardware.pool import Pool
from pluribus.model.layer import Layer
from pluribus.model.share import Share
from pluribus.predict.algorithms import GroupShape
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.link_classes import Links, links_of
from pluribus.predict.operator_tables import OperatorTimes
from pluribus.predict.operators import Work
from pluribus.predict.software import PLURIBUS, Software

# Share of passing keys and values around that attention does not hide; a typical figure.
CONTEXT_EXPOSED = 0.5


NOTHING = Work()


@dataclass(frozen=True, slots=True)
class Talk:
    """One direction of one layer, by what needs it."""

    tensor: Work = NOTHING
    expert: Work = NOTHING
    context: Work = NOTHING

    @property
    def total(self) -> Work:
        return self.tensor + self.expert + self.context


def layer_talk(
    layer: Layer,
    pool: Pool,
    share: Share,
    software: Software = PLURIBUS,
    times: OperatorTimes | None = None,
) -> Talk:
    """The collectives of one direction of one layer.

    Tensor parallelism sums the hidden state twice in a block and once in an embedding or head
    (Shoeybi et al. 2019, arXiv 1909.08053 §3); tokens divided between these regions are gathered
    before and scattered after each (Korthikanti et al. 2022, arXiv 2205.05198, §4.2.2): as many
    bytes, no sum in a switch. Experts exchange every token's copies before and after their network
    (Lepikhin et al. 2020, arXiv 2006.16668 §3). Context-parallel ranks pass keys and values of
    the whole sequence around (Liu et al. 2023, arXiv 2310.01889).

    Args:
        times: measured collectives of the chip, which replace the formula where they are.
    """
    hidden = layer.output_bytes(share)
    block = layer.kind in ("dense", "moe")
    tensor = expert = context = NOTHING
    if share.tp > 1:
        sums = (2 if block else 1) * (1 - software.overlap_tensor)
        wait = Work(intra=software.sum_wait_s * math.log2(2 * share.tp)) if block else NOTHING
        tensor = (_around_region(hidden, pool, share, times) + wait) * sums
    if share.cp > 1 and block:
        heads = layer.attention
        width = getattr(heads, "num_kv_heads", 1) * getattr(heads, "head_dim", 0) or 512
        tokens = share.micro_batch * share.sequence_length
        gathered = 2 * tokens * width * share.bytes_per_element / share.tp
        context = collective_work("all_gather", gathered, share.cp, share.tp, pool)
        context *= CONTEXT_EXPOSED
    if share.ep > 1 and layer.kind == "moe":
        pairs = hidden * layer.feed_forward.top_k / share.tp
        # Experts are whole, so their group runs over tensor-parallel neighbours first.
        expert = collective_work("all_to_all", pairs, share.ep, 1, pool) * 2
        expert = replace(expert, intra=expert.intra * (1 - software.overlap_experts))
    return Talk(tensor, expert, context)


def _around_region(hidden: float, pool: Pool, share: Share, times: OperatorTimes | None) -> Work:
    """A tensor-parallel region's collectives: a gather and a scatter, or a sum of as much."""
    ops = ("all_gather", "reduce_scatter") if share.sequence_parallel else ("all_reduce",)
    if times:
        for measured in (ops, ("all_reduce",)):
            seconds = [times.collective(op, share.tp, hidden) for op in measured]
            if None not in seconds:
                return Work(intra=sum(seconds))
    work = NOTHING
    for op in ops:
        work += collective_work(op, hidden, share.tp, 1, pool)
    return work


def collective_work(op: str, num_bytes: float, members: int, inner: int, pool: Pool) -> Work:
    """A collective of ``members`` ranks of one pool that lie ``inner`` chips apart."""
    return group_work(op, num_bytes, regular_group(members, inner, pool), links_of(pool))


def regular_group(members: int, inner: int, pool: Pool) -> GroupShape:
    """Where ``members`` ranks sit that lie ``inner`` chips apart. The other chips of their nodes
    are in groups like theirs, which share the adapters with them."""
    per_node = max(1, min(members, pool.chips_per_node // inner))
    nodes = -(-members // per_node)
    return GroupShape(per_node, nodes, pool.adapters, groups_per_nic(per_node, pool))


def groups_per_nic(per_node: int, pool: Pool) -> int:
    """Groups on each adapter of a node whose chips are all in groups of so many."""
    lanes = min(per_node, pool.adapters)
    return max(1, pool.chips_per_node // per_node * lanes // pool.adapters)


@functools.lru_cache(maxsize=8192)
def group_work(op: str, num_bytes: float, group: GroupShape, links: Links) -> Work:
    """A collective of one group in one pool."""
    seconds = float(collective_seconds(op, num_bytes, group, links).seconds)
    return Work(inter=seconds) if group.nodes > 1 else Work(intra=seconds)
