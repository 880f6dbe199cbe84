"""Weighs teams of pools against each other and scores the best by `predict`.

A plan is a partition of (some of) the pools into teams. Each team's chips form pipelines of
their own; the teams share the global batch. Two unlike chips thus give both answers: one
pipeline with unequal layers (one team), or two pipelines with unequal micro-batch counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pluribus.core.errors import PlanError
from pluribus.plan.describe import name_of, reason_against
from pluribus.plan.refusal import no_arithmetic, refusal
from pluribus.plan.shapes import Candidate, ShapeFinder
from pluribus.plan.share import deal_evenly, deal_micro_batches
from pluribus.plan.teams import FULL_PARTITIONS, Team, largest, partitions
from pluribus.predict.predict import Forecast, forecast
from pluribus.predict.setting import Setting
from pluribus.spec.calibration import IDENTITY
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Pipeline, Plan
from pluribus.spec.prediction import Alternative

_KEEP_SHAPES = 2  # per team: the fastest, and one more in case gradient sums turn the order
_SCORE = 8  # plans that go through the exact timeline
_SHOW = 8  # rows of the table of alternatives

Draft = tuple[tuple[Candidate, tuple[int, ...]], ...]  # per team: shape, micro-batch counts


@dataclass(frozen=True)
class Scored:
    """A complete plan with its forecast."""

    draft: Draft
    plan: Plan
    forecast: Forecast

    @property
    def seconds(self) -> float:
        return self.forecast.prediction.step_seconds.mid

    @property
    def money(self) -> float:
        return self.forecast.prediction.money_per_step

    @property
    def fits(self) -> bool:
        return all(s.memory.fits for stages in self.forecast.prediction.stages for s in stages)


@dataclass(frozen=True)
class Search:
    """One search in one setting."""

    setting: Setting
    progress: Callable[[str], None] = lambda _: None

    @cached_property
    def finder(self) -> ShapeFinder:
        return ShapeFinder(self.setting)

    def best(self) -> Plan:
        """The plan that serves the job's objective best, with its alternatives.

        Raises:
            PlanError: nothing fits; says by how many GiB on which chip.
        """
        pools = [pool.address for pool in self.finder.usable_pools]
        if not pools:
            raise no_arithmetic(self.setting)
        singles = {pool: self._single(pool) for pool in pools}
        scored = self._weigh(pools, singles) or self._together(pools)
        if not scored:
            raise refusal(self.finder, pools)
        alone = {pool: _rate(items) for pool, items in singles.items()}
        scored = [self._with_alone(item, alone) for item in scored]
        even = self._even(scored, pools)
        if even is not None:
            even = self._with_alone(even, alone)
            # Gradient sums can favour equal cuts: the even split runs in the race.
            scored.append(even)
        order = self._order(scored)
        chosen = order[0]
        shown = _one_of_each_way([item for item in order if item is not even])[:_SHOW]
        rows = [
            self._row(item, chosen, "even split: " if item is even else "")
            for item in order
            if item is even or any(item is other for other in shown)
        ]
        return replace(
            chosen.plan,
            prediction=chosen.forecast.prediction,
            alternatives=tuple(rows),
            explanation=tuple(self._explain(chosen, alone)),
        )

    def alone(self, pool: str) -> Plan | None:
        """The fastest plan on one pool by itself; None when the model does not fit there."""
        return _fastest(self._single(pool))

    def even(self) -> Plan | None:
        """The fastest plan that treats every chip alike: equal layers, equal micro-batches.
        None when no such plan fits."""
        pools = [pool.address for pool in self.finder.usable_pools]
        singles = {pool: self._single(pool) for pool in pools}
        even = self._even(self._weigh(pools, singles), pools)
        return _fastest([even] if even else [])

    def _single(self, pool: str) -> list[Scored]:
        """Plans on one pool by itself, fastest first."""
        return self._score(self._drafts([((pool,),)]))

    def _weigh(self, pools: Sequence[str], singles: dict[str, list[Scored]]) -> list[Scored]:
        """Plans of every way to team up the pools, those of single pools included."""
        able = [pool for pool in pools if singles[pool]]
        teams = self._score(self._drafts(partitions(pools, able)))
        return sorted(itertools.chain(teams, *singles.values()), key=lambda item: item.seconds)

    def _even(self, scored: Sequence[Scored], pools: Sequence[str]) -> Scored | None:
        """The fastest even split of the shapes that use every pool."""
        drafts = []
        for item in scored:
            if {pool for candidate, _ in item.draft for pool in candidate.shape.pools} != set(
                pools
            ):
                continue
            total = sum(sum(counts) for _, counts in item.draft)
            owners = [i for i, (c, _) in enumerate(item.draft) for _ in range(c.shape.pipelines)]
            dealt = deal_evenly(len(owners), total)
            cuts = []
            for i, (candidate, _) in enumerate(item.draft):
                counts = tuple(n for n, o in zip(dealt, owners, strict=True) if o == i)
                sequences = sum(counts) * candidate.shape.micro_batch_size
                cuts.append((self.finder.cut(candidate.shape, sequences, even=True), counts))
            if all(cut for cut, _ in cuts):
                drafts.append(tuple(cuts))
        return min(self._score(drafts), key=lambda item: item.seconds, default=None)

    def _together(self, pools: Sequence[str]) -> list[Scored]:
        """Plans of the fewest pools that hold the model as one team, most memory first."""
        for n in range(2, len(pools) + 1):
            scored = self._score(self._drafts([(largest(self.setting.cluster, pools, n),)]))
            if scored:
                return scored
        return []

    def _score(self, drafts: Iterable[Draft]) -> list[Scored]:
        """The most promising drafts, timed exactly, fastest first; only what fits."""
        scored = []
        for draft in _most_promising(drafts):
            plan = self._plan(draft)
            item = Scored(draft, plan, forecast(plan, self.setting, {}))
            if item.fits:
                scored.append(item)
        return sorted(scored, key=lambda item: item.seconds)

    def _drafts(self, partitions: Iterable[tuple[Team, ...]]) -> Iterator[Draft]:
        """Complete deals of the global batch over the teams of each partition."""
        global_batch = self.setting.job.train.global_batch
        for partition in partitions:
            self.progress(" | ".join("+".join(team) for team in partition))
            for size in self.setting.job.plan.micro_batch_sizes:
                if global_batch % size == 0:
                    yield from self._deals(partition, size)

    def _deals(self, partition: tuple[Team, ...], micro_batch_size: int) -> Iterator[Draft]:
        global_batch = self.setting.job.train.global_batch
        speeds = [sum(self._ideal_speed(pool, micro_batch_size) for pool in t) for t in partition]
        keep = _KEEP_SHAPES if len(partition) <= FULL_PARTITIONS else 1
        options = []
        for team, speed in zip(partition, speeds, strict=True):
            sequences = max(micro_batch_size, round(global_batch * speed / sum(speeds)))
            options.append(self.finder.best(team, micro_batch_size, sequences, keep))
        for choice in itertools.product(*options):
            owners = [i for i, c in enumerate(choice) for _ in range(c.shape.pipelines)]
            counts = deal_micro_batches(
                [choice[i].first for i in owners],
                [choice[i].each for i in owners],
                global_batch // micro_batch_size,
            )
            if counts is not None:
                yield tuple(
                    (c, tuple(n for n, owner in zip(counts, owners, strict=True) if owner == i))
                    for i, c in enumerate(choice)
                )

    def _ideal_speed(self, pool: str, micro_batch_size: int) -> float:
        """Sequences/s of a pool if its layers and batches could be cut at will."""
        chips = self.setting.pool(pool).num_chips
        time = self.setting.layers_time(
            pool, (0, len(self.setting.model.layers)), micro_batch_size, 1, "none"
        )
        return chips * micro_batch_size / time.total

    def _plan(self, draft: Draft) -> Plan:
        pipelines: tuple[Pipeline, ...] = ()
        for candidate, counts in draft:
            pipelines += self.finder.pipelines(candidate, counts)
        setting = self.setting
        return Plan(
            pipelines=pipelines,
            job=setting.job.to_table(),
            job_digest=setting.job.digest,
            cluster=setting.cluster.to_table(),
            cluster_digest=setting.cluster.digest,
            model_config=dict(setting.model.config),
            directory=setting.job.directory,
            profile=setting.profile,
            calibration=None if setting.calibration == IDENTITY else setting.calibration,
        )

    def _with_alone(self, item: Scored, alone: dict[str, float]) -> Scored:
        total = sum(alone.values())
        prediction = replace(
            item.forecast.prediction,
            alone_tokens_per_s=alone,
            aggregation=item.forecast.prediction.tokens_per_s / total if total else None,
        )
        return replace(item, forecast=replace(item.forecast, prediction=prediction))

    def _order(self, scored: list[Scored]) -> list[Scored]:
        """Best first, by the job's objective."""
        objective = self.setting.job.plan.objective
        if objective == "time":
            return sorted(scored, key=lambda item: item.seconds)
        if objective == "money":
            return sorted(scored, key=lambda item: (item.money, item.seconds))
        assert isinstance(objective, Deadline)
        steps = self.setting.job.train.num_steps
        in_time = [item for item in scored if item.seconds * steps <= objective.seconds]
        if not in_time:
            fastest = scored[0].seconds * steps / 3600
            raise PlanError(
                f"no plan ends within {objective.deadline}; the fastest needs {fastest:.1f} h",
                where="job.toml [plan.objective]",
                do="Allow more time, fewer steps, or add chips.",
            )
        late = [item for item in scored if item not in in_time]
        return sorted(in_time, key=lambda item: (item.money, item.seconds)) + late

    def _row(self, item: Scored, chosen: Scored, prefix: str) -> Alternative:
        prediction = item.forecast.prediction
        memory = [s.memory for stages in prediction.stages for s in stages]
        return Alternative(
            name=prefix + name_of(item.plan, self.setting),
            step_seconds=item.seconds,
            memory_share=max(m.total / m.capacity for m in memory),
            aggregation=prediction.aggregation,
            money_per_step=prediction.money_per_step,
            chosen=item is chosen,
            note="" if item is chosen else reason_against(prediction, chosen.forecast.prediction),
        )

    def _explain(self, chosen: Scored, alone: dict[str, float]) -> list[str]:
        lines = []
        used = set(chosen.plan.chips)
        for pool in self.setting.cluster.pools:
            idle = [chip for chip in pool.chip_addresses() if chip not in used]
            if not idle:
                continue
            if pool.address not in alone:
                why = f"{pool.chip.key} has no {self.setting.precision}"
            elif len(idle) == pool.num_chips:
                why = "with them the plan would be worse by the job's objective"
            else:
                why = "they do not fill another whole pipeline"
            lines.append(f"{len(idle)} of {pool.num_chips} chips of {pool.address} unused: {why}")
        return lines


def _way(draft: Draft) -> tuple[tuple[str, ...], ...]:
    """How a draft teams up the pools, and their order along each team's pipelines."""
    return tuple(sorted(candidate.shape.pools for candidate, _ in draft))


def _one_of_each_way(order: Sequence[Scored]) -> list[Scored]:
    """The best of every way to use the pools, best first."""
    best: dict[tuple, Scored] = {}
    for item in order:
        best.setdefault(_way(item.draft), item)
    return list(best.values())


def _most_promising(drafts: Iterable[Draft]) -> list[Draft]:
    """The fastest drafts by their bottleneck, and the fastest of every way to team up pools."""

    def seconds(draft: Draft) -> float:
        return max(candidate.seconds(max(counts)) for candidate, counts in draft)

    chosen, ways = [], set()
    for draft in sorted(drafts, key=seconds):
        way = _way(draft)
        if len(chosen) < _SCORE or way not in ways:
            chosen.append(draft)
        ways.add(way)
    return chosen


def _rate(scored: Sequence[Scored]) -> float:
    """Tokens/s of the fastest, which is the first; 0 when nothing fits."""
    return scored[0].forecast.prediction.tokens_per_s if scored else 0.0


def _fastest(scored: Sequence[Scored]) -> Plan | None:
    if not scored:
        return None
    best = min(scored, key=lambda item: item.seconds)
    return replace(best.plan, prediction=best.forecast.prediction)
