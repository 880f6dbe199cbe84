"""Seconds of a plan's gradient sums, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pluribus.predict.collectives import group_all_reduce_seconds
from pluribus.predict.degrees import Degrees, Parameters
from pluribus.predict.operators import Work
from pluribus.predict.price import StagePrice, element
from pluribus.predict.replicas import Replicas, exposed_seconds, sync_work
from pluribus.predict.schedule import GradientGroup
from pluribus.predict.setting import Setting
from pluribus.predict.timeline import Lane
from pluribus.spec.plan import Plan, Stage


def reduce_seconds(
    plan: Plan,
    setting: Setting,
    groups: Sequence[GradientGroup],
    prices: Mapping[Lane, StagePrice],
) -> list[float]:
    """What each group's sum takes once its last member has come, beyond what runs under the
    members' last backward where the program overlaps them."""
    crossing = _crossings(plan, groups)
    factors = setting.calibration
    seconds = [
        factors.overhead * _group_work(plan, setting, group, crossing).seconds(factors)
        for group in groups
    ]
    if not setting.software.overlap_gradients:
        return seconds
    window = {lane: sum(t.backward for t in price.chunks) for lane, price in prices.items()}
    exposed = []
    for group, whole in zip(groups, seconds, strict=True):
        under = min(window[lane] for lane in group.holders)
        exposed.append(exposed_seconds(whole, under))
        for lane in group.holders:
            window[lane] -= whole - exposed[-1]
    return exposed


def _group_work(plan: Plan, setting: Setting, group: GradientGroup, crossing: int) -> Work:
    """The sum of one group's gradients. With unlike tensor-parallel degrees the stage with the
    fewest chips sets the bytes per chip."""
    stages = [plan.pipelines[p].stages[s] for p, s in group.holders]
    layers = [setting.model.layers[i] for i in group.layers]
    least = min(stages, key=lambda stage: stage.tensor_parallel)
    degrees = Degrees.of(least)
    parameters = Parameters.of(layers, degrees)
    pools = {stage.pool for stage in stages}
    if len(pools) == 1 and len({_likeness(stage) for stage in stages}) == 1:
        zero = min(stage.zero for stage in stages)
        if not zero or len(stages) == 1:
            chips = [chip for stage in stages for chip in stage.chips]
            replicas = Replicas.of_chips(chips, degrees, setting.pool(least.pool))
            return sync_work(parameters, zero, replicas, setting.software, element(setting))
    inside = Work()
    for stage in stages:
        own = Degrees.of(stage)
        if own.replicas > 1:
            replicas = Replicas.of_chips(stage.chips, own, setting.pool(stage.pool))
            work = sync_work(
                Parameters.of(layers, own), own.zero, replicas, setting.software, element(setting)
            )
            inside = max(inside, work, key=lambda w: w.intra + w.inter)
    # Every replica of a stage carries its own part across.
    lanes = min(Degrees.of(stage).replicas for stage in stages)
    across = group_all_reduce_seconds(
        parameters.total * setting.software.gradient_sync_bytes / lanes,
        [stage.chips[0] for stage in stages],
        setting.cluster,
        setting.profile,
        crossing,
    )
    return inside + Work(inter=across)


def _likeness(stage: Stage) -> tuple[int, ...]:
    return stage.tensor_parallel, stage.expert_parallel, stage.zero


def _crossings(plan: Plan, groups: Sequence[GradientGroup]) -> int:
    """Gradient sums that cross between pools at the same time: one per tensor-parallel rank."""
    crossing = 0
    for group in groups:
        stages = [plan.pipelines[p].stages[s] for p, s in group.holders]
        if len({stage.pool for stage in stages}) > 1:
            crossing += min(stage.tensor_parallel for stage in stages)
    return max(crossing, 1)
