"""How others plan, as small planners over the same pipelines, scored by the same predictor.

Each gives its candidates; the quickest that fits by our own forecast is its answer, so none of
them suffers from a cost model of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from pluribus.core.errors import PlanError
from pluribus.hardware.pool import Pool
from pluribus.plan.placement import place, unplaced
from pluribus.plan.shapes import Shape, ShapeFinder
from pluribus.plan.share import deal_evenly, deal_micro_batches
from pluribus.plan.split import even_split
from pluribus.predict.memory import stage_memory
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Stage
from pluribus.spec.plan import Plan as PlanFile

Pipelines = tuple[Pipeline, ...]

_TIMED = 12  # candidates of a rival that are timed exactly, the most promising by its own measure

_ORDERS = 60  # of the kinds of device that the greedy tries, evenly out of all


def usable(setting: Setting) -> list[Pool]:
    return [p for p in setting.cluster.pools if p.chip.supports(setting.precision)]


def best_of(candidates: Iterable[tuple[float, Pipelines]], setting: Setting) -> float | None:
    """Seconds of the quickest of the most promising candidates that fit; None if none does."""
    best, timed = None, 0
    for _, pipelines in sorted(candidates, key=lambda item: item[0]):
        if not fits(pipelines, setting):
            continue
        seconds = timed_exactly(pipelines, setting)
        if seconds is not None and (best is None or seconds < best):
            best = seconds
        timed += 1
        if timed == _TIMED:
            break
    return best


def fits(pipelines: Pipelines, setting: Setting) -> bool:
    """By memory at every position of the schedule."""
    return all(
        stage_memory(setting, pipeline, s).fits
        for pipeline in dict.fromkeys(pipelines)
        for s in range(len(pipeline.stages))
    )


def timed_exactly(pipelines: Pipelines, setting: Setting) -> float | None:
    """Seconds of a step; None where a tensor-parallel group finds no node."""
    try:
        placed = place(pipelines, setting)
    except PlanError:
        return None
    plan = PlanFile(
        pipelines=placed, job=setting.job.to_table(), job_digest=setting.job.digest,
        cluster=setting.cluster.to_table(), cluster_digest=setting.cluster.digest,
        model_config=dict(setting.model.config),
    )  # fmt: skip
    return forecast(plan, setting, {}).prediction.step_seconds.mid


def islands(setting: Setting) -> Iterator[tuple[float, Pipelines]]:
    """Megatron's way: one model split (tp, pp, even layers) for all, each pool by itself, data
    parallel over all of them, every replica with as many micro-batches."""
    pools, layers = usable(setting), len(setting.model.layers)
    for size, recompute in _sizes_and_modes(setting):
        for tp in (1, 2, 4, 8):
            if not _divides(setting, tp):
                continue
            for depth in range(1, min(layers, 64) + 1):
                stages = even_split(layers, depth)
                owners = [
                    pool
                    for pool in pools
                    if pool.chips_per_node % tp == 0
                    for _ in range(pool.num_chips // (tp * depth))
                ]
                total = setting.job.train.global_batch // size
                owners = owners[:total]
                if not owners or (len(owners) > 1 and total < len(owners)):
                    continue
                pipelines = tuple(
                    _pipeline([(pool.address, tp, cut) for cut in stages], size, count, recompute)
                    for pool, count in zip(owners, deal_evenly(len(owners), total), strict=True)
                )
                yield _quick(pipelines, setting), pipelines


def repeated_shape(setting: Setting) -> Iterator[tuple[float, Pipelines]]:
    """One shape of pipeline, repeated: any pools along it, uneven layers, the best cut there is."""
    finder, pools = ShapeFinder(setting), [pool.address for pool in usable(setting)]
    batch = setting.job.train.global_batch
    most = 3 if len(pools) > 4 else len(pools)  # orders of more pools than that are too many
    teams = [t for n in range(1, most + 1) for t in itertools.combinations(pools, n)]
    for team in teams:
        for size in setting.job.plan.micro_batch_sizes:
            if batch % size:
                continue
            for candidate in finder.best(team, size, batch, 1):
                shape = candidate.shape
                total = batch // size
                counts = deal_evenly(shape.pipelines, total)
                pipelines = tuple(_of_shape(shape, candidate.layers, count) for count in counts)
                yield candidate.seconds(max(counts)), pipelines


def greedy(setting: Setting) -> Iterator[tuple[float, Pipelines]]:
    """Metis's way (Um et al., ATC'24): kinds of device in every order, device groups of one size,
    layers by compute, data parallel halved into tensor parallel until it fits.

    As in its search: groups of a power of two; a stage per group; the micro-batches of each
    candidate number. Where its own balancer would keep unlike degrees per stage, all stages of a
    candidate have the same here.
    """
    pools, layers = usable(setting), len(setting.model.layers)
    orders = list(itertools.permutations(pools))
    orders = orders[:: max(1, len(orders) // _ORDERS)]
    for size, recompute in _sizes_and_modes(setting):
        for group in (2**i for i in range(11)):
            for order in orders:
                owners = [p for p in order for _ in range(p.num_chips // group)]
                if not owners or len(owners) > layers:
                    continue
                cuts = _by_compute(setting, owners, size)
                if cuts is None:
                    continue
                tp = 1
                while tp <= group:
                    replicas = group // tp
                    able = all(p.chips_per_node % tp == 0 for p in owners)
                    total = setting.job.train.global_batch // size
                    if able and _divides(setting, tp) and replicas <= total:
                        stages = [(p.address, tp, c) for p, c in zip(owners, cuts, strict=True)]
                        counts = deal_evenly(replicas, total)
                        pipelines = tuple(_pipeline(stages, size, n, recompute) for n in counts)
                        if fits(pipelines[:1], setting):
                            yield _quick(pipelines, setting), pipelines
                            break  # it stops halving as soon as the memory suffices
                    tp *= 2


def separate(setting: Setting) -> Iterator[tuple[float, Pipelines]]:
    """Each pool by itself with its own best shape, micro-batches by speed: no pipeline crosses."""
    finder, batch = ShapeFinder(setting), setting.job.train.global_batch
    for size in setting.job.plan.micro_batch_sizes:
        if batch % size:
            continue
        found = [c for p in usable(setting) for c in finder.best((p.address,), size, batch, 1)]
        owners = [c for c in found for _ in range(c.shape.pipelines)]
        counts = (
            deal_micro_batches([c.first for c in owners], [c.each for c in owners], batch // size)
            if owners
            else None
        )
        if counts:
            pipelines = tuple(
                _of_shape(c.shape, c.layers, n) for c, n in zip(owners, counts, strict=True)
            )
            yield _quick(pipelines, setting), pipelines


def _sizes_and_modes(setting: Setting) -> Iterator[tuple[int, str]]:
    wanted = setting.job.plan.recompute
    for size in setting.job.plan.micro_batch_sizes:
        if setting.job.train.global_batch % size == 0:
            for mode in ("none", "full") if wanted == "auto" else (wanted,):
                yield size, mode


def _divides(setting: Setting, tp: int) -> bool:
    return all(layer.supports_tp(tp) for layer in setting.model.layers)


def _pipeline(
    stages: Sequence[tuple[str, int, tuple[int, int]]], size: int, count: int, recompute: str
) -> Pipeline:
    return Pipeline(
        stages=tuple(
            Stage(chips=unplaced(pool, tp), layers=cut, tensor_parallel=tp, recompute=recompute)
            for pool, tp, cut in stages
        ),
        micro_batch_size=size,
        micro_batches=count,
    )


def _of_shape(shape: Shape, layers: Sequence[tuple[int, int]], count: int) -> Pipeline:
    kinds = [
        (pool, tp)
        for pool, n, tp in zip(shape.pools, shape.stages, shape.tensor_parallel, strict=True)
        for _ in range(n)
    ]
    stages = [(pool, tp, cut) for (pool, tp), cut in zip(kinds, layers, strict=True)]
    return _pipeline(stages, shape.micro_batch_size, count, shape.recompute)


def _by_compute(
    setting: Setting, owners: Sequence[Pool], size: int
) -> tuple[tuple[int, int], ...] | None:
    """Layers in proportion to the stages' speed, at least one each."""
    count = len(setting.model.layers)
    speeds = {
        p.address: 1 / setting.layers_time(p.address, (0, count), size, 1, "none").total
        for p in dict.fromkeys(owners)
    }
    total, ends, done = sum(speeds[p.address] for p in owners), [0], 0.0
    for index, pool in enumerate(owners):
        done += speeds[pool.address]
        left = len(owners) - 1 - index
        end = max(ends[-1] + 1, min(round(count * done / total), count - left))
        ends.append(end)
    return tuple(itertools.pairwise(ends)) if ends[-1] == count else None


def _quick(pipelines: Pipelines, setting: Setting) -> float:
    """Fill and slowest stage: (M − 1) max + sum, as Metis and the textbooks count."""
    worst = 0.0
    for pipeline in dict.fromkeys(pipelines):
        times = [setting.stage_time(s, pipeline.micro_batch_size).total for s in pipeline.stages]
        worst = max(worst, sum(times) + (pipeline.micro_batches - 1) * max(times))
    return worst
