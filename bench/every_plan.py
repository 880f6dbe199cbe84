"""The best of all plans of a small setting, by branch and bound over every plan there is.

The space is the planner's: pipelines of any depth, each stage on some pool with some tensor-
parallel degree, any cut of the layers, any micro-batch size of the job, 1F1B, any number of
micro-batches, any mix of unlike pipelines that has the chips. Each plan counts as what
`plan.placement` and `predict.forecast` make of it.

Nothing is left out by a rule of thumb. Two things make it quick, both proven: a stage that fits
without recompute uses none, because a 1F1B timeline never ends later when a pass gets shorter; and
a mix of pipelines is looked at only if a lower bound of its step (`floors`) is below the best step
so far. The bound is independent of the planner's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluribus.core.errors import PlanError
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.plan.placement import place, unplaced
from pluribus.predict.boundary import boundary_seconds
from pluribus.predict.collectives import group_all_reduce_seconds
from pluribus.predict.memory import GRADIENT_BYTES, stage_memory
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.predict.update import optimizer_seconds
from pluribus.spec.plan import Pipeline, Plan, Stage

Way = tuple[str, int]  # a stage's pool and tensor-parallel degree
Deal = tuple[tuple[int, int], ...]  # of a plan: (column, micro-batches) of each pipeline


class TooManyError(Exception):
    """More plans would have to be timed than were allowed."""


@dataclass(frozen=True)
class Truth:
    """The best plan there is.

    Attributes:
        seconds: of its step.
        plan: None where the step was given and nothing is below it.
        timed: plans that were timed to know.
        columns: pipelines that were weighed.
    """

    seconds: float
    plan: Plan | None
    timed: int
    columns: int


def best_of_all(setting: Setting, known: float = np.inf, *, most: int = 20_000) -> Truth:
    """The least step of all plans.

    Args:
        known: a step that some plan reaches; only plans below it are looked for.
        most: plans that may be timed.

    Raises:
        TooManyError: it would take more.
    """
    return _Search(setting, Space(setting), known, most).run()


@dataclass(frozen=True, eq=False)
class Space:
    """Every pipeline of a setting, and a floor under its seconds."""

    setting: Setting

    @cached_property
    def pools(self) -> tuple[Pool, ...]:
        precision = self.setting.precision
        return tuple(p for p in self.setting.cluster.pools if p.chip.supports(precision))

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        return tuple(
            (pool.address, tp)
            for pool in self.pools
            for tp in range(1, pool.chips_per_node + 1)
            if pool.chips_per_node % tp == 0
            and all(layer.supports_tp(tp) for layer in self.setting.model.layers)
        )

    @cached_property
    def pool_of(self) -> np.ndarray:
        """[ways] index of the pool."""
        addresses = [pool.address for pool in self.pools]
        return np.array([addresses.index(pool) for pool, _ in self.ways])

    @cached_property
    def degrees(self) -> np.ndarray:
        """[ways] chips of a stage."""
        return np.array([tp for _, tp in self.ways])

    @cached_property
    def available(self) -> np.ndarray:
        """[pools] chips."""
        return np.array([pool.num_chips for pool in self.pools])

    def sequences_of_ways(self, depth: int) -> np.ndarray:
        """[n, depth] the ways of each stage, for every pipeline that has the chips."""
        grown = np.zeros((1, 0), dtype=np.int64)
        for _ in range(depth):
            count = len(self.ways)
            grown = np.concatenate(
                [
                    np.repeat(grown, count, axis=0),
                    np.tile(np.arange(count), len(grown))[:, None],
                ],
                axis=1,
            )
            grown = grown[(self.chips(grown) <= self.available).all(axis=1)]
        return grown

    def chips(self, ways: np.ndarray) -> np.ndarray:
        """[n, pools] chips that rows of ways take."""
        taken = np.zeros((len(ways), len(self.pools)), dtype=np.int64)
        for p in range(len(self.pools)):
            taken[:, p] = np.where(self.pool_of[ways] == p, self.degrees[ways], 0).sum(axis=1)
        return taken

    def hop(self, size: int) -> np.ndarray:
        """[ways, ways] least seconds of a message and its answer, wherever the stages are put."""
        setting = self.setting
        result = np.zeros((len(self.ways), len(self.ways)))
        for a, (source, width) in enumerate(self.ways):
            for b, (target, other) in enumerate(self.ways):
                times = [
                    boundary_seconds(setting, _stage(x, width), _stage(y, other), size)
                    for x, y in _ends(setting.cluster, source, target)
                ]
                result[a, b] = 2 * min(times, default=0.0)
        return result


def _stage(chip: str, width: int) -> Stage:
    """A stage of which only its first chip and its ranks matter."""
    return Stage(chips=(chip,) * width, layers=(0, 1), tensor_parallel=width)


def _ends(cluster: Cluster, a: str, b: str) -> list[tuple[str, str]]:
    """Pairs of chips that stand for every pair of two pools."""
    if a != b:
        return [(f"{a}/0/0", f"{b}/0/0")]
    pool = cluster.pool(a)
    near = [(f"{a}/0/0", f"{a}/0/1")] if pool.chips_per_node > 1 else []
    return near + ([(f"{a}/0/0", f"{a}/1/0")] if pool.nodes > 1 else [])


@dataclass(frozen=True, eq=False)
class Columns:
    """Pipelines of one micro-batch size and depth, as arrays.

    Attributes:
        ways: [n, depth] index into `Space.ways`.
        cuts: [n, depth + 1] where the stages begin and end.
        recompute: [n, depth, counts] whether a stage recomputes, by micro-batches from 1 on.
        floors: [n, counts] seconds that a step with so many micro-batches takes at least, alone;
            infinite where they do not fit.
        beside: [n, counts] the same where another pipeline sums gradients with it.
    """

    size: int
    ways: np.ndarray
    cuts: np.ndarray
    recompute: np.ndarray
    floors: np.ndarray
    beside: np.ndarray


def columns_of(space: Space, size: int, depth: int) -> Columns:
    """Every pipeline of a micro-batch size and a depth."""
    setting = space.setting
    layers = setting.model.layers
    most = setting.job.train.global_batch // size
    cuts = np.array(
        [
            (0, *inner, len(layers))
            for inner in itertools.combinations(range(1, len(layers)), depth - 1)
        ]
    )
    ways = space.sequences_of_ways(depth)
    n = len(cuts) * len(ways)
    cuts = np.repeat(cuts, len(ways), axis=0)
    ways = np.tile(ways, (n // max(len(ways), 1), 1))
    counts = np.arange(1, most + 1)
    table = _StageTable(space, size)
    first, end = cuts[:, :-1], cuts[:, 1:]
    held = np.minimum(np.arange(depth, 0, -1)[None, :, None], counts)  # [1, depth, counts]
    plain = table.most_held[0][ways, first, end][:, :, None] >= held
    again = table.most_held[1][ways, first, end][:, :, None] >= held
    recompute = ~plain
    if setting.job.plan.recompute != "auto":
        recompute = np.full_like(plain, setting.job.plan.recompute == "full")
    fits = np.where(recompute, again, plain).all(axis=1)  # [n, counts]
    hops = space.hop(size)[ways[:, :-1], ways[:, 1:]]
    seconds = np.full((n, most), np.inf)
    for m in counts:
        mode = recompute[:, :, m - 1].astype(np.int64)
        forward = table.forward[mode, ways, first, end]
        backward = table.backward[mode, ways, first, end]
        seconds[:, m - 1] = floors(forward, backward, hops, int(m))
    update = table.update[ways[:, 0], first[:, 0], end[:, 0]]
    sums = table.sums[ways[:, 0], first[:, 0], end[:, 0]]
    alone = np.where(fits, seconds + update[:, None], np.inf)
    able = np.isfinite(alone).any(axis=1)
    return Columns(
        size, ways[able], cuts[able], recompute[able], alone[able], (alone + sums[:, None])[able]
    )


def floors(forward: np.ndarray, backward: np.ndarray, hops: np.ndarray, m: int) -> np.ndarray:
    """[n] seconds before which the first stage's last backward cannot have ended under 1F1B.

    Args:
        forward, backward: [n, S] of one micro-batch.
        hops: [n, S − 1] of a message and its answer.
        m: micro-batches.

    Notes:
        Each is the length of a path through the graph of a 1F1B step. Stage s cannot begin
        before the forwards and messages of the stages before it, nor the first stage end before
        the backwards and answers after stage s has ended: their sum is ``before``. In between
        stage s works through all passes, m t. Or it follows a micro-batch to the last stage and
        back, ``after`` with its own passes, and only then takes the one that its w = S − s places
        make room for: micro-batches j, j + w, j + 2 w, …, each a way of its own, the passes of
        the rest at the end.
    """
    count, depth = forward.shape
    t = forward + backward
    hops = np.concatenate([hops, np.zeros((count, 1))], axis=1)
    before = np.concatenate([np.zeros((count, 1)), np.cumsum((t + hops)[:, :-1], axis=1)], axis=1)
    after = (before[:, -1] + t[:, -1])[:, None] - before
    result = before + m * t
    for s in range(depth):
        places = min(depth - s, m)
        ways, rest = divmod(m, places)
        # The last stretch: the micro-batches beyond whole ways pass through the stage in turn.
        path = ways * after[:, s] + rest * t[:, s]
        result[:, s] = np.maximum(result[:, s], before[:, s] + path)
        # One way and nothing but the stage's own passes: at most `places − 1` forwards lie
        # before it, and as many backwards after it.
        spare = places - 1
        once = (
            after[:, s] + m * t[:, s] - t[:, s] - spare * np.minimum(forward[:, s], backward[:, s])
        )
        result[:, s] = np.maximum(result[:, s], before[:, s] + once)
    return result.max(axis=1)


class _StageTable:
    """Prices of one stage by (mode, way, first layer, end); mode 1 recomputes."""

    def __init__(self, space: Space, size: int) -> None:
        setting, count = space.setting, len(space.setting.model.layers)
        shape = (len(space.ways), count + 1, count + 1)
        self.forward, self.backward = np.full((2, 2, *shape), np.inf)
        self.most_held = np.zeros((2, *shape), dtype=np.int64)
        self.update, self.sums = np.zeros((2, *shape))
        batch = setting.job.train.global_batch
        for w, (pool, tp) in enumerate(space.ways):
            for first, end in itertools.combinations(range(count + 1), 2):
                for mode, recompute in enumerate(("none", "full")):
                    stage = Stage(
                        chips=unplaced(pool, tp), layers=(first, end), tensor_parallel=tp,
                        recompute=recompute,
                    )  # fmt: skip
                    time = setting.stage_time(stage, size)
                    self.forward[mode, w, first, end] = time.forward
                    self.backward[mode, w, first, end] = time.backward
                    self.most_held[mode, w, first, end] = _most_held(setting, stage, size, batch)
                layers = setting.model.layers[first:end]
                parameters = sum(layer.parameters_per_rank(tp=tp) for layer in layers)
                chip = setting.pool(pool).chip
                self.update[w, first, end] = optimizer_seconds(parameters, chip, setting.profile)
                self.sums[w, first, end] = _least_sum(space, pool, parameters * GRADIENT_BYTES)


def _most_held(setting: Setting, stage: Stage, size: int, batch: int) -> int:
    """The most micro-batches in flight that fit on a stage; GPipe holds as many as it is given."""
    fitting = 0
    for held in range(1, batch // size + 1):
        pipeline = Pipeline(
            stages=(stage,), micro_batch_size=size, micro_batches=held, schedule="gpipe"
        )
        if not stage_memory(setting, pipeline, 0).fits:
            break
        fitting = held
    return fitting


def _least_sum(space: Space, pool: str, num_bytes: float) -> float:
    """Seconds of the quickest sum that a chip of a pool can have with any other: more members
    send more, and more levels take longer."""
    setting = space.setting
    pairs = [pair for other in space.pools for pair in _ends(setting.cluster, pool, other.address)]
    return min(
        (
            group_all_reduce_seconds(num_bytes, pair, setting.cluster, setting.profile)
            for pair in pairs
        ),
        default=np.inf,
    )


class _Search:
    def __init__(self, setting: Setting, space: Space, known: float, most: int) -> None:
        self.setting, self.space, self.best, self.most = setting, space, known, most
        self.plan: Plan | None = None
        self.timed = 0
        batch = setting.job.train.global_batch
        depths = range(1, min(len(setting.model.layers), int(space.available.sum())) + 1)
        sizes = [size for size in sorted(set(setting.job.plan.micro_batch_sizes)) if size <= batch]
        self.groups = [columns_of(space, size, depth) for size in sizes for depth in depths]
        self.batch = batch

    def run(self) -> Truth:
        for deal in self._singles():
            self._time([deal])
        for floor, deals in self._mixes():
            if floor >= self.best:
                break
            self._time(deals)
        return Truth(self.best, self.plan, self.timed, sum(len(g.ways) for g in self.groups))

    def _singles(self) -> Iterator[tuple]:
        """One pipeline for the whole batch, the most promising first."""
        found = []
        for g, group in enumerate(self.groups):
            if self.batch % group.size == 0:
                m = self.batch // group.size
                found += [(floor, g, i, m) for i, floor in enumerate(group.floors[:, m - 1])]
        for floor, g, i, m in sorted(found):
            if floor >= self.best:
                return
            yield ((g, i, m),)

    def _mixes(self) -> Iterator[tuple[float, list[tuple]]]:
        """Mixes of several pipelines by the floor of their step, each with every deal of the
        batch that stays below the best step so far."""
        rows = []  # (group, index) of each column that is of use beside others
        caps = []
        for g, group in enumerate(self.groups):
            within = (group.beside < self.best).sum(axis=1)
            # Floors grow with the count, so this is the most micro-batches within the step.
            for i in np.flatnonzero(within):
                rows.append((g, int(i)))
                caps.append(int(within[i]) * group.size)
        if not rows:
            return
        taken = np.array([self.space.chips(self.groups[g].ways[i : i + 1])[0] for g, i in rows])
        value = np.array(caps)
        order = np.lexsort((-value, *taken.T))
        taken, value = taken[order], value[order]
        rows = [rows[i] for i in order]
        most = _most_by_chips(taken, value, self.space.available)
        found = []
        for members in self._cover(taken, value, most):
            if len(members) > 1:
                floor = self._floor([rows[i] for i in members])
                if floor < self.best:
                    found.append((floor, [rows[i] for i in members]))
        found.sort(key=lambda item: item[0])
        for floor, mix in found:
            if floor >= self.best:
                return
            yield floor, list(self._deals(mix))

    def _cover(
        self, taken: np.ndarray, value: np.ndarray, most: np.ndarray
    ) -> Iterator[tuple[int, ...]]:
        """Every set of columns, each any number of times, that delivers the batch."""
        count, limit = 0, 200 * self.most

        def grow(
            start: int, free: np.ndarray, missing: int, chosen: tuple[int, ...]
        ) -> Iterator[tuple[int, ...]]:
            nonlocal count
            if missing <= 0:
                yield chosen
                # A further pipeline may still help: the others then do fewer micro-batches.
            fits = start + np.flatnonzero((taken[start:] <= free).all(axis=1))
            if not len(fits):
                return
            left = free - taken[fits]
            reach = value[fits] + most[tuple(left.T)]
            for i, rest, within in zip(fits.tolist(), left, reach >= missing, strict=True):
                if within:
                    count += 1
                    if count > limit:
                        raise TooManyError(f"more than {limit} mixes")
                    yield from grow(i, rest, missing - int(value[i]), (*chosen, i))

        yield from grow(0, self.space.available, self.batch, ())

    def _floor(self, mix: Sequence[tuple[int, int]]) -> float:
        """The least step in which the pipelines can be through with the batch, by their floors."""
        ends, sizes = [], []
        for g, i in mix:
            group = self.groups[g]
            ends.append(group.beside[i])
            sizes.append(np.full(len(group.beside[i]), group.size))
        end, size = np.concatenate(ends), np.concatenate(sizes)
        order = np.argsort(end)
        done = np.cumsum(size[order])
        at = int(np.searchsorted(done, self.batch))
        every = max(float(e[0]) for e in ends)  # each has one micro-batch at least
        return max(float(end[order][at]), every) if at < len(end) else np.inf

    def _deals(self, mix: Sequence[tuple[int, int]]) -> Iterator[tuple]:
        """Every way to deal the batch to the pipelines; like ones get falling counts."""

        def give(at: int, left: int, dealt: tuple) -> Iterator[tuple]:
            if at == len(mix):
                if left == 0:
                    yield dealt
                return
            g, i = mix[at]
            group = self.groups[g]
            ends = group.beside[i]
            most = min(int((ends < self.best).sum()), left // group.size)
            if at and mix[at - 1] == mix[at]:
                most = min(most, dealt[-1][2])
            for m in range(most, 0, -1):
                yield from give(at + 1, left - m * group.size, (*dealt, (g, i, m)))

        yield from give(0, self.batch, ())

    def _time(self, deals: Sequence[tuple]) -> None:
        """Times plans exactly and keeps the best."""
        for deal in deals:
            floor = max(
                (self.groups[g].beside if len(deal) > 1 else self.groups[g].floors)[i, m - 1]
                for g, i, m in deal
            )
            if floor >= self.best:
                continue
            self.timed += 1
            if self.timed > self.most:
                raise TooManyError(f"more than {self.most} plans")
            plan = self._plan(deal)
            if plan is None:
                continue
            seconds = forecast(plan, self.setting, {}).prediction.step_seconds.mid
            assert seconds >= floor * (1 - 1e-9), "the floor is above the forecast"
            if seconds < self.best:
                self.best, self.plan = seconds, plan

    def _plan(self, deal: Sequence[tuple]) -> Plan | None:
        setting = self.setting
        pipelines = []
        for g, i, m in deal:
            group = self.groups[g]
            stages = []
            for s, way in enumerate(group.ways[i]):
                pool, tp = self.space.ways[way]
                stages.append(
                    Stage(
                        chips=unplaced(pool, tp),
                        layers=(int(group.cuts[i, s]), int(group.cuts[i, s + 1])),
                        tensor_parallel=tp,
                        recompute="full" if group.recompute[i, s, m - 1] else "none",
                    )
                )
            pipelines.append(
                Pipeline(stages=tuple(stages), micro_batch_size=group.size, micro_batches=m)
            )
        try:
            placed = place(pipelines, setting)
        except PlanError:
            return None  # the chips are there, but no node has room for a group
        return Plan(
            pipelines=placed, job=setting.job.to_table(), job_digest=setting.job.digest,
            cluster=setting.cluster.to_table(), cluster_digest=setting.cluster.digest,
            model_config=dict(setting.model.config),
        )  # fmt: skip


def _most_by_chips(taken: np.ndarray, value: np.ndarray, available: np.ndarray) -> np.ndarray:
    """[chips of each pool + 1] the most sequences that so many chips deliver."""
    best: dict[tuple[int, ...], int] = {}
    for row, worth in zip(map(tuple, taken.tolist()), value.tolist(), strict=True):
        best[row] = max(best.get(row, 0), worth)
    most = np.zeros(tuple(available + 1), dtype=np.int64)
    for free in itertools.product(*(range(n + 1) for n in available)):
        for row, worth in best.items():
            rest = tuple(f - r for f, r in zip(free, row, strict=True))
            if min(rest) >= 0:
                most[free] = max(most[free], worth + most[rest])
    return most
