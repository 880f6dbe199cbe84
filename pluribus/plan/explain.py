"""Why a plan is as it is: who does how much of the work, and what keeps the slowest stage slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pluribus.core.units import GIB, format_seconds
from pluribus.model.share import Share
from pluribus.predict.memory import stage_memory
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan, Stage

_NEAR = 0.02  # stages within this share of the slowest one count as equally slow


def explain(plan: Plan, setting: Setting) -> list[str]:
    """Lines for the user: one per pool in use, one for the bottleneck.

    Args:
        plan: with its prediction.
    """
    return [*_shares(plan, setting), _bottleneck(plan, setting)]


def _shares(plan: Plan, setting: Setting) -> list[str]:
    """Each pool's share of the work beside its share of the speed."""
    assert plan.prediction is not None
    layers = range(len(setting.model.layers))
    share = Share(1, setting.sequence_length)
    weight = [setting.model.layers[i].forward_flops(share) for i in layers]
    done: dict[str, float] = {}
    chips: dict[str, int] = {}
    busy: dict[str, float] = {}
    for p, s, stage in plan.stages:
        held = sum(weight[i] for i in stage.layer_indices)
        done[stage.pool] = done.get(stage.pool, 0) + held * plan.pipelines[p].sequences
        chips[stage.pool] = chips.get(stage.pool, 0) + len(stage.chips)
        share = plan.prediction.stages[p][s].busy * len(stage.chips)
        busy[stage.pool] = busy.get(stage.pool, 0) + share
    rate = {
        pool: count * setting.pool(pool).chip.matmul_flops(setting.precision)
        for pool, count in chips.items()
    }
    if len(chips) == 1:
        return []
    return [
        f"{pool} does {done[pool] / sum(done.values()):.0%} of the work with "
        f"{rate[pool] / sum(rate.values()):.0%} of the arithmetic in use: {chips[pool]} chips, "
        f"busy {busy[pool] / chips[pool]:.0%}"
        for pool in sorted(done, key=done.__getitem__, reverse=True)
    ]


def _bottleneck(plan: Plan, setting: Setting) -> str:
    """The slowest stage, and why its layers stay there."""
    assert plan.prediction is not None
    rows = plan.prediction.stages
    lanes = [(p, s) for p, s, _ in plan.stages]
    slowest = max(lanes, key=lambda lane: rows[lane[0]][lane[1]].busy)
    p, s = slowest
    top = rows[p][s].busy
    equal = sum(rows[i][j].busy >= top * (1 - _NEAR) for i, j in lanes)
    pipeline = plan.pipelines[p]
    stage = pipeline.stages[s]
    chip = setting.pool(stage.pool).chip.key
    seconds = rows[p][s].forward + rows[p][s].backward
    line = (
        f"the bottleneck is stage {s + 1} of pipeline {p + 1} ({len(stage.chips)} × {chip}, "
        f"{setting.model.describe_layers(*stage.layers)}): busy {top:.0%}, "
        f"{format_seconds(seconds)} a micro-batch"
    )
    if equal == len(lanes):
        return line + ("; all stages are as slow: the work is even" if equal > 1 else "")
    if equal > 1:
        line += f"; {equal} of {len(lanes)} stages are as slow"
        return line + _idlest(pipeline, [row.busy for row in rows[p]], seconds, setting)
    if stage.chunks or stage.num_layers == 1 or len(pipeline.stages) == 1:
        return line
    tries = [_give(pipeline, s, other, setting) for other in (s - 1, s + 1)]
    return line + "; " + ", and ".join(t for t in tries if t)


def _idlest(pipeline: Pipeline, busy: Sequence[float], slowest: float, setting: Setting) -> str:
    """Why the stage that waits most does not take a layer more."""
    s = min(range(len(busy)), key=busy.__getitem__)
    stage = pipeline.stages[s]
    if stage.chunks or busy[s] >= max(busy) * (1 - _NEAR):
        return ""
    first, end = stage.layers
    more = (first, end + 1) if end < len(setting.model.layers) else (first - 1, end)
    stages = [*pipeline.stages[:s], replace(stage, layers=more), *pipeline.stages[s + 1 :]]
    memory = stage_memory(setting, replace(pipeline, stages=tuple(stages)), s)
    told = f"; stage {s + 1} waits most (busy {busy[s]:.0%}), and with a layer more it would "
    if not memory.fits:
        return told + f"lack {(memory.total - memory.capacity) / GIB:.1f} GiB"
    seconds = setting.stage_time(stages[s], pipeline.micro_batch_size).total
    if seconds > slowest:
        return told + f"be the slowest ({format_seconds(seconds)})"
    return told + f"take {format_seconds(seconds)}"


def _give(pipeline: Pipeline, source: int, target: int, setting: Setting) -> str:
    """What would happen if a stage gave its outermost layer to a neighbour."""
    if not 0 <= target < len(pipeline.stages):
        return ""
    first, end = pipeline.stages[source].layers
    a, b = pipeline.stages[target].layers
    moved = (
        (replace(pipeline.stages[target], layers=(a, b + 1)), (first + 1, end))
        if target < source
        else (replace(pipeline.stages[target], layers=(a - 1, b)), (first, end - 1))
    )
    stages: list[Stage] = list(pipeline.stages)
    stages[target] = moved[0]
    stages[source] = replace(stages[source], layers=moved[1])
    other = replace(pipeline, stages=tuple(stages))
    memory = stage_memory(setting, other, target)
    if not memory.fits:
        lacks = (memory.total - memory.capacity) / GIB
        return f"with a layer of it stage {target + 1} would lack {lacks:.1f} GiB"
    seconds = setting.stage_time(stages[target], pipeline.micro_batch_size).total
    return f"with a layer of it stage {target + 1} would take {format_seconds(seconds)}"
