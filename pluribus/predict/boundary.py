"""Seconds of the hidden state on its way from one stage to the next."""

from __future__ import annotations

import itertools
from collections import Counter

from pluribus.hardware.pool import Pool
from pluribus.predict.collectives import POINT_TO_POINT, message_seconds
from pluribus.predict.degrees import Degrees
from pluribus.predict.operators import Work
from pluribus.predict.setting import Setting, boundary_bytes
from pluribus.predict.talk import collective_work
from pluribus.spec.plan import Plan, Stage


def boundary_work(num_bytes: float, degrees: Degrees, pool: Pool) -> Work:
    """A message between two like stages of one pool, the chips of one after those of the other.

    Every rank sends its part to the rank in its place (the scatter and gather of Narayanan et
    al. 2021, arXiv 2104.04473 §4.1; with sequence parallelism there is nothing to gather).

    Args:
        num_bytes: the hidden state of one micro-batch.
    """
    reach = degrees.tp * degrees.cp * degrees.dp
    return collective_work("send", num_bytes / (degrees.tp * degrees.cp), 2, reach, pool)


def boundary_seconds(
    setting: Setting, source: Stage, target: Stage, micro_batch_size: int,
    sharers: int = 1, flows: float = 1,
) -> float:  # fmt: skip
    """One message between two stages: as many ranks send at once as the narrower side has.

    Args:
        sharers: messages like this one that cross the link between the two pools at once.
        flows: messages that leave a node at once, for links that were measured as curves.
    """
    num_bytes = boundary_bytes(setting, micro_batch_size)
    lanes = min(stage.tensor_parallel * stage.context_parallel for stage in (source, target))
    factors = setting.calibration
    chips = source.chips[0], target.chips[0]
    pools = source.pool, target.pool
    if setting.profile and setting.profile.link(*pools, POINT_TO_POINT):
        # Measured between one pair of chips: what more pairs would reach is not known.
        return factors.overhead * message_seconds(
            num_bytes, *chips, setting.cluster, setting.profile
        )
    seconds = message_seconds(num_bytes / lanes, *chips, setting.cluster, setting.profile, flows)
    shared = setting.cluster.link_between_pools(*pools) if pools[0] != pools[1] else None
    if shared:
        seconds = max(seconds, shared.latency_s + sharers * num_bytes / shared.bytes_per_s)
    near = chips[0].rpartition("/")[0] == chips[1].rpartition("/")[0]
    seconds *= factors.intra if near else factors.inter
    return factors.overhead * (seconds + setting.software.message_byte_s * num_bytes)


def crossing_messages(plan: Plan) -> Counter[tuple[str, str]]:
    """Of each pair of pools, the messages that cross from one to the other at once: pipelines
    that are alike send theirs in step."""
    counts: Counter[tuple[str, str]] = Counter()
    for pipeline in plan.pipelines:
        for a, b in itertools.pairwise(pipeline.stages):
            if a.pool != b.pool:
                counts[a.pool, b.pool] += pipeline.replicas
    return counts
