"""Plans in words: what a plan is called in a table, and why another beats it."""

from __future__ import annotations

from itertools import groupby

from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan
from pluribus.spec.prediction import Prediction


def name_of(plan: Plan, setting: Setting) -> str:
    """One line: pipelines grouped by likeness, each with its stages and micro-batches.

    Example:
        ``1 × [fast 8 layers · 13 micro-batches] + 1 × [slow 8 layers · 3 micro-batches]``
    """
    parts = []
    for key, group in groupby(plan.pipelines, key=_shape):
        pipelines = list(group)
        counts = sorted({pipeline.micro_batches for pipeline in pipelines})
        shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        size = pipelines[0].micro_batch_size
        parts.append(f"{len(pipelines)} × [{key} · {shown} micro-batches of {size}]")
    return " + ".join(parts)


def _shape(pipeline: Pipeline) -> str:
    parts = []
    for pool, group in groupby(pipeline.stages, key=lambda stage: stage.pool):
        stages = list(group)
        layers = "/".join(str(stage.num_layers) for stage in stages)
        if len(stages) > 4:
            sizes = [stage.num_layers for stage in stages]
            low, high = min(sizes), max(sizes)
            layers = f"{len(stages)} stages of {low if low == high else f'{low}–{high}'}"
        tp = stages[0].tensor_parallel
        parts.append(f"{pool.split('/')[1]}{f' tp{tp}' if tp > 1 else ''} {layers} layers")
    recompute = ", recompute" if pipeline.stages[0].recompute == "full" else ""
    return " → ".join(parts) + recompute


def reason_against(loser: Prediction, winner: Prediction) -> str:
    """What the slower plan spends its extra time on."""
    extra = loser.step_seconds.mid - winner.step_seconds.mid
    if abs(extra) < 1e-3 * winner.step_seconds.mid:
        return "as fast"
    if extra < 0:
        return "faster, but worse by the job's objective"
    parts = {
        "compute on its slowest stage": loser.breakdown.compute - winner.breakdown.compute,
        "waiting (bubble)": loser.breakdown.bubble - winner.breakdown.bubble,
        "stage messages": loser.breakdown.pipeline_communication
        - winner.breakdown.pipeline_communication,
        "talk inside stages": loser.breakdown.inside_stage - winner.breakdown.inside_stage,
        "gradient sums": loser.breakdown.gradient_sync - winner.breakdown.gradient_sync,
        "the update": loser.breakdown.optimizer - winner.breakdown.optimizer,
    }
    worst = max(parts, key=parts.__getitem__)
    return f"+{extra / winner.step_seconds.mid:.0%}, mostly {worst}"
