"""Small changes to a small plan, as long as they help.

With a dozen chips the column that a plan lacks may be one that no price asks for: a stage of one
chip taken out of a pair, a pool that a pipeline visits twice, a split for three micro-batches. On
small plans every change one step away can be timed exactly: a border moved by a layer, a stage of
another kind, two stages made one or one made two, a micro-batch dealt to another pipeline, a
pipeline less. A change is timed only if a bound that no timeline goes below leaves it a chance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pluribus.plan.columns import Column, PipelineClass, StageChoice, StageKind, Team, chips_used
from pluribus.plan.pace import step_bounds
from pluribus.plan.prices import stage_kinds, usable_pools
from pluribus.plan.score import Scored, score
from pluribus.predict.memory import stage_memory
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Pipeline, Stage

MOST_STAGES = 24  # of all pipelines together; beyond, columns are dense enough
_PASSES = 60_000  # forwards of all plans timed in one search

Row = tuple[Column, int]  # a pipeline and its micro-batches
Rows = tuple[Row, ...]
Key = Callable[[Scored], tuple]


@dataclass(eq=False)
class Improver:
    """Local search in one setting.

    Attributes:
        pools: addresses of those whose chips may be used.
        key: what is to be least.
        timed: plans timed so far.
    """

    setting: Setting
    pools: Sequence[str]
    key: Key
    timed: int = 0

    def __post_init__(self) -> None:
        setting = self.setting
        pools = [pool for pool in usable_pools(setting) if pool.address in self.pools]
        self.available = {pool.address: pool.num_chips for pool in pools}
        wanted = setting.job.plan.recompute
        self.modes = ("none", "full") if wanted == "auto" else (wanted,)
        kinds = [k for pool in pools for k in stage_kinds(setting, pool)]
        self.kinds = [k for k in kinds if k.recompute == self.modes[0]]
        self._fits: dict[tuple, bool] = {}

    def improved(self, item: Scored, tries: int = 150) -> Scored:
        """The best plan found by best-first search from a plan: the most promising plan that was
        timed is changed next, even where that first makes it a little worse.

        Args:
            tries: plans timed at most, fewer where a step has many passes.
        """
        if sum(len(c.column.stages) * c.count for c in item.team) > MOST_STAGES:
            return item
        passes = sum(len(c.column.stages) * sum(c.micro_batches) for c in item.team)
        best, until = item, self.timed + min(tries, _PASSES // passes)
        open_plans = [(self.key(item), _rows(item.team))]
        seen = {open_plans[0][1]}
        while open_plans:
            key, rows = heapq.heappop(open_plans)
            for after in self._changes(rows):
                if after in seen or not self._may_beat(after, best):
                    continue
                if self.timed == until:
                    return best
                seen.add(after)
                self.timed += 1
                scored = score(_team(after), self.setting)
                if scored is None:
                    continue
                heapq.heappush(open_plans, (self.key(scored), after))
                if self.key(scored) < self.key(best):
                    best = scored
                    heapq.heappush(open_plans, (key, rows))  # for what was not yet tried
                    break
        return best

    def _may_beat(self, rows: Rows, best: Scored) -> bool:
        """Whether no bound forbids it to be quicker; a dearer plan may still be wanted slower."""
        if self.setting.job.plan.objective != "time":
            return True
        return all(self._floor(column, count) < best.seconds for column, count in rows)

    def _floor(self, column: Column, count: int) -> float:
        size = column.micro_batch_size
        times = [
            self.setting.layers_time(
                s.kind.pool, s.layers, size, s.kind.tensor_parallel, s.kind.recompute
            )
            for s in column.stages
        ]
        forward = np.array([time.forward for time in times])
        backward = np.array([time.backward for time in times])
        return float(step_bounds(forward, backward, np.zeros(len(times) - 1), [count])[0])

    def _changes(self, rows: Rows) -> Iterator[Rows]:
        """Everything one step away that has the chips and fits in memory."""
        free = dict(self.available)
        for pool, number in chips_used(_team(rows)).items():
            free[pool] -= number
        for i, (column, count) in enumerate(rows):
            for stages in self._reshaped(column.stages):
                yield from self._with(rows, i, replace(column, stages=stages), count, free)
        yield from self._redealt(rows)
        yield from self._with_another(rows, free)

    def _with(
        self, rows: Rows, i: int, column: Column, count: int, free: dict[str, int]
    ) -> Iterator[Rows]:
        """Row ``i`` with another column, if there are the chips and the memory; and with it all
        rows that were like it."""
        like = [j for j, row in enumerate(rows) if row[0] == rows[i][0]]
        if like[0] != i:
            return
        for changed in ([i], like) if len(like) > 1 else ([i],):
            more = {
                pool: (column.chips.get(pool, 0) - rows[i][0].chips.get(pool, 0)) * len(changed)
                for pool in free
            }
            if any(number > free[pool] for pool, number in more.items()):
                continue
            after = list(rows)
            for j in changed:
                fitting = self._in_memory(column, rows[j][1])
                if fitting is None:
                    break
                after[j] = (fitting, rows[j][1])
            else:
                yield _sorted(after)

    def _reshaped(self, stages: tuple[StageChoice, ...]) -> Iterator[tuple[StageChoice, ...]]:
        for s, stage in enumerate(stages):
            first, end = stage.layers
            before, rest = stages[:s], stages[s + 1 :]
            if rest:
                after = rest[0]
                for cut in (end - 1, end + 1):
                    if first < cut < after.layers[1]:
                        yield (
                            *before, replace(stage, layers=(first, cut)),
                            replace(after, layers=(cut, after.layers[1])), *rest[1:],
                        )  # fmt: skip
                for kind in (stage.kind, after.kind):
                    yield (*before, StageChoice(kind, (first, after.layers[1])), *rest[1:])
                yield (
                    *before, replace(stage, kind=after.kind), replace(after, kind=stage.kind),
                    *rest[1:],
                )  # fmt: skip
            for kind in self.kinds:
                if replace(kind, recompute=stage.kind.recompute) != stage.kind:
                    yield (*before, replace(stage, kind=kind), *rest)
                for cut in range(first + 1, end):
                    one, two = (first, cut), (cut, end)
                    yield (*before, StageChoice(kind, one), replace(stage, layers=two), *rest)
                    yield (*before, replace(stage, layers=one), StageChoice(kind, two), *rest)

    def _redealt(self, rows: Rows) -> Iterator[Rows]:
        """A micro-batch from one pipeline to another of as large ones, or all of a pipeline's."""
        for i, (giver, count) in enumerate(rows):
            for j, (taker, other) in enumerate(rows):
                if i == j or giver.micro_batch_size != taker.micro_batch_size:
                    continue
                for given in {1, count}:
                    fitting = self._in_memory(taker, other + given)
                    if fitting is not None:
                        after = [row for k, row in enumerate(rows) if k not in (i, j)]
                        after.append((fitting, other + given))
                        if count > given:
                            after.append((giver, count - given))
                        yield _sorted(after)

    def _with_another(self, rows: Rows, free: dict[str, int]) -> Iterator[Rows]:
        """A pipeline more, like one there is or whole on one stage, that takes a share."""
        layers = len(self.setting.model.layers)
        for i, (column, count) in enumerate(rows):
            if count < 2:
                continue
            whole = [
                replace(column, stages=(StageChoice(kind, (0, layers)),)) for kind in self.kinds
            ]
            for new in (column, *whole):
                if any(number > free.get(pool, 0) for pool, number in new.chips.items()):
                    continue
                for given in sorted({1, count // 2}):
                    fitting = self._in_memory(new, given)
                    if fitting is not None:
                        rest = [row for k, row in enumerate(rows) if k != i]
                        yield _sorted([*rest, (column, count - given), (fitting, given)])

    def _in_memory(self, column: Column, count: int) -> Column | None:
        """The column with recompute only where it does not fit without; None if nothing fits."""
        stages = []
        for s, stage in enumerate(column.stages):
            held = min(len(column.stages) - s, count)
            for mode in self.modes:
                choice = replace(stage, kind=replace(stage.kind, recompute=mode))
                if self._holds(choice, column.micro_batch_size, held):
                    stages.append(choice)
                    break
            else:
                return None
        return replace(column, stages=tuple(stages))

    def _holds(self, choice: StageChoice, size: int, held: int) -> bool:
        key = (choice, size, held)
        if key not in self._fits:
            self._fits[key] = stage_memory(self.setting, _alone(choice, size, held), 0).fits
        return self._fits[key]


def rank(setting: Setting, *, robust: bool = False) -> Key:
    """What the job's objective wants least, as `score.ordered` does."""
    objective, steps = setting.job.plan.objective, setting.job.train.num_steps

    def key(item: Scored) -> tuple:
        seconds = item.high if robust else item.seconds
        if objective == "time":
            return (seconds,)
        if objective == "money":
            return (item.money, seconds)
        assert isinstance(objective, Deadline)
        if seconds * steps > objective.seconds:
            return (1, seconds)
        return (0, item.money, seconds)

    return key


def _alone(choice: StageChoice, size: int, held: int) -> Pipeline:
    """A pipeline of one stage that holds this many micro-batches at once, as GPipe does."""
    kind: StageKind = choice.kind
    stage = Stage(
        chips=(f"{kind.pool}/0/0",) * kind.num_chips, layers=choice.layers,
        tensor_parallel=kind.tensor_parallel, context_parallel=kind.context_parallel,
        expert_parallel=kind.expert_parallel, recompute=kind.recompute, zero=kind.zero,
    )  # fmt: skip
    return Pipeline(stages=(stage,), micro_batch_size=size, micro_batches=held, schedule="gpipe")


def _rows(team: Team) -> Rows:
    return _sorted([(item.column, count) for item in team for count in item.micro_batches])


def _sorted(rows: Sequence[Row]) -> Rows:
    return tuple(sorted(rows))


def _team(rows: Rows) -> Team:
    columns = dict.fromkeys(column for column, _ in rows)
    return tuple(
        PipelineClass(c, tuple(sorted((n for other, n in rows if other == c), reverse=True)))
        for c in columns
    )
