"""A plan's gradient sums: what each takes by itself, and what it puts on links it shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pluribus.predict.algorithms import ALL_REDUCE
from pluribus.predict.collectives import group_all_reduce_seconds
from pluribus.predict.crossing import crossing
from pluribus.predict.curves import curve_all_reduce_seconds
from pluribus.predict.degrees import Degrees, Parameters
from pluribus.predict.link_classes import links_of
from pluribus.predict.operators import Work
from pluribus.predict.price import element
from pluribus.predict.replicas import Replicas, group_of, sync_work
from pluribus.predict.schedule import GradientGroup
from pluribus.predict.setting import Setting
from pluribus.predict.talk import group_work
from pluribus.predict.update import relayout_work
from pluribus.spec.plan import Plan, Stage

# A shared link: a node whose chips share adapters, or the ends of a link between pools.
Place = tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """A part of a sum.

    Attributes:
        seconds: alone.
        wire: bytes it puts on each shared link, in the busier direction.
        rings: buffers that it sums at once, each with a fair share of its own.
    """

    seconds: float
    wire: Mapping[Place, float]
    rings: int


def gradient_sum(
    plan: Plan,
    setting: Setting,
    group: GradientGroup,
    flows: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Phase, ...]:
    """The phases of one group's sum: inside each pool, then over the pools.

    Every tensor-parallel rank has a ring of its own. Where degrees are unlike, the rings are as
    many as the widest stage has ranks, and a rank of a narrower one is in several: its adapter
    carries the gradients of all of them, and both sides cut their matrices anew.

    Args:
        flows: rings that leave each node at once, for links that were measured as curves.
    """
    stages = [plan.pipelines[p].stages[s] for p, s in group.holders]
    layers = [setting.model.layers[i] for i in group.layers]
    by_pool: dict[str, list[Stage]] = {}
    for stage in stages:
        by_pool.setdefault(stage.pool, []).append(stage)
    measured = _measured(setting, stages, layers, flows)
    if measured:
        return (measured,)
    factors = setting.calibration
    narrow = min(stages, key=lambda stage: stage.tensor_parallel)
    parameters = Parameters.of(layers, Degrees.of(narrow))
    num_bytes = parameters.total * setting.software.gradient_sync_bytes
    inside = [_inside(setting, layers, alike) for alike in by_pool.values()]
    beside = setting.software.sum_byte_s * num_bytes
    if len({stage.tensor_parallel for stage in stages}) > 1:
        beside += max(
            relayout_work(Parameters.of(layers, degrees).total, setting.pool(pool).chip).seconds(
                factors
            )
            for degrees, pool in {(Degrees.of(stage), stage.pool) for stage in stages}
        )
    first = Phase(
        (max(phase.seconds for phase in inside) + beside) * factors.overhead,
        {place: wire for phase in inside for place, wire in phase.wire.items()},
        max(phase.rings for phase in inside),
    )
    if len(by_pool) == 1:
        return (first,)
    ranks = {
        pool: sum(Degrees.of(stage).replicas for stage in own) for pool, own in by_pool.items()
    }
    rings = narrow.tensor_parallel
    way = crossing(num_bytes, ranks, setting.cluster, rings)
    wire: dict[Place, float] = dict(way.wire)
    for own in by_pool.values():
        # The ranks of a pool deal what crosses among themselves.
        nodes = {_node(chip) for stage in own for chip in stage.chips}
        share = 2 * (len(by_pool) - 1) / len(by_pool) / len(nodes)
        wire |= _egress(setting, own, share * num_bytes * rings)
    seconds = way.seconds * factors.inter * factors.overhead
    return first, Phase(seconds, wire, rings)


def _measured(
    setting: Setting, stages: Sequence[Stage], layers: Sequence, flows: Mapping[str, float]
) -> Phase | None:
    """The sum over links whose sums or bandwidths the profile has, or None."""
    profile = setting.profile
    chips = [chip for stage in stages for chip in stage.chips[:: stage.tensor_parallel]]
    pools = [stage.pool for stage in stages]
    if profile is None:
        return None
    narrow = min(stages, key=lambda stage: stage.tensor_parallel)
    num_bytes = Parameters.of(layers, Degrees.of(narrow)).total
    num_bytes *= setting.software.gradient_sync_bytes
    seconds, wire = None, {}
    if profile.curves:
        # The curve knows how the node's link is shared.
        seconds = curve_all_reduce_seconds(num_bytes, chips, setting.cluster, profile, flows)
    elif len(chips) == 2 and len(set(pools)) == 2 and profile.link(*pools, ALL_REDUCE):
        seconds = group_all_reduce_seconds(num_bytes, chips, setting.cluster, profile)
        spec = setting.cluster.link_between_pools(*pools)
        wire = {spec.between: num_bytes} if spec else {}
    if seconds is None:
        return None
    seconds += setting.software.sum_byte_s * num_bytes
    return Phase(seconds * setting.calibration.overhead, wire, 1)


def _inside(setting: Setting, layers: Sequence, stages: Sequence[Stage]) -> Phase:
    """The sum over the stages of one pool."""
    pool, software = setting.pool(stages[0].pool), setting.software
    alike = {(s.tensor_parallel, s.expert_parallel, s.zero) for s in stages}
    own = Degrees.of(stages[0])
    work = Work()
    if len(alike) == 1 and (not own.zero or len(stages) == 1):
        chips = [chip for stage in stages for chip in stage.chips]
        replicas = Replicas.of_chips(chips, own, pool)
        parameters = Parameters.of(layers, own)
        work = sync_work(parameters, own.zero, replicas, software, element(setting))
        num_bytes = parameters.total * software.gradient_sync_bytes
    else:
        num_bytes = 0.0
        for stage in stages:
            degrees = Degrees.of(stage)
            parameters = Parameters.of(layers, degrees)
            num_bytes = max(num_bytes, parameters.total * software.gradient_sync_bytes)
            replicas = Replicas.of_chips(stage.chips, degrees, pool)
            each = sync_work(parameters, degrees.zero, replicas, software, element(setting))
            work = max(work, each, key=lambda w: w.intra + w.inter)
        # Every replica of a stage then carries its own part to the other stages.
        lanes = min(Degrees.of(stage).replicas for stage in stages)
        group = group_of([stage.chips[0] for stage in stages], pool)
        work += group_work(ALL_REDUCE, num_bytes / lanes, group, links_of(pool))
    rings = max(stage.tensor_parallel for stage in stages)
    # Scattered once, and gathered once as gradients, as weights, or (ZeRO 3) elsewhere.
    moved = num_bytes
    if not own.zero:
        moved += num_bytes
    elif own.zero < 3:
        moved += num_bytes / software.gradient_sync_bytes * element(setting)
    nodes = {_node(chip) for stage in stages for chip in stage.chips}
    share = (len(nodes) - 1) / len(nodes)
    wire = _egress(setting, stages, share * moved * rings)
    return Phase(work.seconds(setting.calibration), wire, rings)


def _egress(setting: Setting, stages: Sequence[Stage], num_bytes: float) -> dict[Place, float]:
    """So many bytes over the shared adapters of each node of some stages of one pool."""
    pool = setting.pool(stages[0].pool)
    if pool.adapters == pool.chips_per_node or not num_bytes:
        return {}
    return {(_node(chip),): num_bytes for stage in stages for chip in stage.chips}


def capacities(setting: Setting, phases: Sequence[Phase]) -> dict[Place, float]:
    """Bytes/s of every shared link that some phase uses."""
    rates = {spec.between: spec.bytes_per_s for spec in setting.cluster.links}
    result = {}
    for place in {place for phase in phases for place in phase.wire}:
        if len(place) == 1:
            pool = setting.pool("/".join(place[0].split("/")[:2]))
            peak = links_of(pool).nic.link_class.peak
            result[place] = pool.node_bytes_per_s * peak
        else:
            result[place] = rates[place]
    return result


def _node(chip: str) -> str:
    return chip.rpartition("/")[0]
