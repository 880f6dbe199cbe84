"""Puts the stages of a plan on chips: which node, which chip, which rank.

Tensor-parallel chips share a node. Within a pool the peers of a gradient sum and the neighbours
of a pipeline compete for the links inside the nodes: gradients are usually the larger part, so
peers sit side by side and pipelines cross the network, but which is better depends on bytes and
bandwidths, so every regular layout is weighed. Between pools and sites only pipelines and the
outer level of gradient sums cross; which pools share a pipeline is the search's choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pluribus.plan.layout import Fragments, Layout, fragments_of, layouts
from pluribus.plan.placement_cost import Traffic, neighbours
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline

Cost = tuple[float, float]  # seconds, bytes that leave their rail

_ROUNDS = 2  # over the pools: the choice in one can shift the bottleneck to another


def unplaced(pool: str, count: int) -> tuple[str, ...]:
    """The chips of a stage that `place` has yet to choose: only their number and pool count."""
    return (f"{pool}/0/0",) * count


def place(
    pipelines: Sequence[Pipeline], setting: Setting, *, without: Collection[str] = ()
) -> tuple[Pipeline, ...]:
    """The pipelines with a chip for every rank.

    Args:
        pipelines: where their stages' chips are now does not matter; the pool of a stage and the
            number of its chips do (see `unplaced`).
        without: addresses of chips that are not to be used, such as lost ones.

    Returns:
        The same pipelines. A stage's chips are listed replica by replica, the tensor-parallel
        chips of each next to each other in one node. Equal input gives equal output.

    Raises:
        PlanError: some tensor-parallel group finds no node with enough chips; says which.

    Notes:
        Per pool the layouts of `layout.layouts` are weighed by `Traffic`: the slowest pipeline
        plus the longest gradient sums, then what leaves its rail. Pools are gone through in
        turn, twice.
    """
    pools = sorted({stage.pool for pipeline in pipelines for stage in pipeline.stages})
    work = [fragments_of(pipelines, setting.pool(pool), without) for pool in pools]
    chosen = _choose(Traffic(setting, pipelines), work)
    return _with_chips(pipelines, work, chosen)


def _choose(traffic: Traffic, work: Sequence[Fragments]) -> list[Layout]:
    """A layout per pool."""
    options = [[_Option.of(traffic, f, layout) for layout in layouts(f)] for f in work]
    depth = max(len(pipeline.stages) for pipeline in traffic.pipelines)
    near = np.zeros((len(traffic.pipelines), depth), dtype=bool)
    chosen: list[_Option] = []
    for fragments, mine in zip(work, options, strict=True):
        chosen.append(min(mine, key=lambda option: option.gradient_seconds))
        near = neighbours(fragments, chosen[-1].layout, near)
    for _ in range(_ROUNDS if len(work) > 1 else 1):
        for i, fragments in enumerate(work):
            if len(options[i]) == 1:
                continue
            others = max(
                (o.gradient_seconds for j, o in enumerate(chosen) if j != i), default=0.0
            )
            best: tuple[Cost, _Option, np.ndarray] | None = None
            apart: dict[bytes, float] = {}
            for option in options[i]:
                mine = neighbours(fragments, option.layout, near)
                mark = mine.tobytes()
                if mark not in apart:
                    apart[mark] = max(
                        traffic.pipeline_seconds(pipeline, rows, mine)
                        for pipeline, rows in traffic.columns
                    )
                seconds = apart[mark] + max(option.gradient_seconds, others)
                cost = (seconds, option.off_rail_bytes)
                if best is None or cost < best[0]:
                    best = cost, option, mine
            assert best is not None
            _, chosen[i], near = best
    return [option.layout for option in chosen]


@dataclass(frozen=True, eq=False)
class _Option:
    """A layout of one pool with what it costs by itself."""

    layout: Layout
    gradient_seconds: float
    off_rail_bytes: float

    @classmethod
    def of(cls, traffic: Traffic, fragments: Fragments, layout: Layout) -> _Option:
        return cls(
            layout,
            traffic.gradient_seconds(fragments, layout),
            traffic.off_rail_bytes(fragments, layout),
        )


def _with_chips(
    pipelines: Sequence[Pipeline], work: Sequence[Fragments], chosen: Sequence[Layout]
) -> tuple[Pipeline, ...]:
    chips: dict[tuple[int, int], tuple[str, ...]] = {}
    for fragments, layout in zip(work, chosen, strict=True):
        for index, (p, s) in enumerate(
            zip(fragments.pipeline.tolist(), fragments.stage.tolist(), strict=True)
        ):
            chips[p, s] = chips.get((p, s), ()) + fragments.chips(layout, index)
    return tuple(
        replace(
            pipeline,
            stages=tuple(
                replace(stage, chips=chips[p, s]) for s, stage in enumerate(pipeline.stages)
            ),
        )
        for p, pipeline in enumerate(pipelines)
    )
