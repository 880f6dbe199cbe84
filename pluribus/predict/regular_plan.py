"""A regular layout as the pipeline of a plan, so that `forecast` can predict it too."""

from __future__ import annotations

import itertools
from dataclasses import replace

from pluribus.hardware.cluster import Pool
from pluribus.model.model import Model
from pluribus.predict.regular import Layout, stage_layers
from pluribus.predict.schedules.base import Placement
from pluribus.spec.plan import Pipeline, Stage


def regular_pipelines(
    model: Model, pool: Pool, layout: Layout, *, apart: bool = False
) -> tuple[Pipeline, ...]:
    """The layout on the pool's chips, stage after stage.

    Args:
        apart: one pipeline for each replica, with nothing but a gradient sum in common, in the
            place of one pipeline whose stages hold all replicas. ZeRO and expert parallelism
            need the replicas in one stage.

    Raises:
        PlanError: interleaved micro-batches that are no multiple of the stages.
    """
    degrees = layout.degrees
    each = degrees.tp * degrees.cp
    width = each * layout.dp
    chips = pool.chip_addresses()
    stages = []
    for s, ranges in enumerate(_ranges(model, layout)):
        stages.append(
            Stage(
                chips=chips[s * width : (s + 1) * width],
                layers=ranges[0],
                chunks=ranges if len(ranges) > 1 else (),
                tensor_parallel=layout.tp,
                context_parallel=layout.cp,
                expert_parallel=layout.ep,
                recompute=layout.recompute,
                zero=layout.zero,
            )
        )
    whole = Pipeline(
        stages=tuple(stages),
        micro_batch_size=layout.micro_batch,
        micro_batches=layout.micro_batches * layout.dp,
        schedule=layout.schedule,
        virtual_stages=layout.chunks,
    )
    if not apart:
        return (whole,)
    return tuple(
        replace(
            whole,
            stages=tuple(
                replace(stage, chips=stage.chips[r * each : (r + 1) * each]) for stage in stages
            ),
            micro_batches=layout.micro_batches,
        )
        for r in range(layout.dp)
    )


def _ranges(model: Model, layout: Layout) -> list[tuple[tuple[int, int], ...]]:
    """Of each stage the ranges of layers of its chunks, as many in all as `stage_layers` says."""
    place = Placement(layout.pp, layout.chunks, vee=layout.schedule == "zbv")
    counts = [0] * place.num_virtual
    for s, layers in enumerate(stage_layers(model, layout)):
        blocks = sum(layer.kind in ("dense", "moe") for layer in layers)
        for c in range(place.chunks):
            share = blocks // place.chunks + (c < blocks % place.chunks)
            counts[place.virtual(s, c)] = share
    counts[0] += 1
    counts[-1] += 1
    bounds = list(itertools.pairwise(itertools.accumulate(counts, initial=0)))
    return [
        tuple(bounds[place.virtual(s, c)] for c in range(place.chunks)) for s in range(layout.pp)
    ]
