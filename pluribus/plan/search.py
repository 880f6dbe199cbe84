"""The search: columns, mixes of them, whole teams, exact scores, and a proof of how good it is.

`Generator` finds the pipelines worth using and the least step in which a mix of fractions of them
delivers the batch; `candidates` makes whole teams out of them; `score` forecasts the most promising
exactly; `bound` proves a step that no plan can go below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pluribus.plan.bound import Bound
from pluribus.plan.candidates import cheap_teams, column_of, estimate, teams
from pluribus.plan.columns import PipelineClass, Team
from pluribus.plan.describe import name_of, reason_against
from pluribus.plan.explain import explain
from pluribus.plan.generate import Generator
from pluribus.plan.improve import Improver, rank
from pluribus.plan.refusal import no_arithmetic, refusal
from pluribus.plan.rounding import deal, redealt
from pluribus.plan.score import (
    Scored,
    one_of_each_way,
    ordered,
    polished,
    score_all,
    way,
    with_alone,
    with_even_layers,
)  # fmt: skip
from pluribus.plan.shapes import ShapeFinder
from pluribus.plan.share import deal_evenly
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Plan
from pluribus.spec.prediction import Alternative

_SCORE = 20  # teams that go through the exact timeline
_SCORE_PASSES = 12_000  # forwards of them all, like pipelines once, but _SCORE_LEAST teams at least
_SCORE_LEAST = 3
_EVEN, _EVEN_MANY = 6, 2  # of the fastest plans that use every pool, cut evenly
_TRIES_ALONE = 60  # single steps timed for a pool by itself
_MANY, _SCORE_ALONE = 256, 2  # teams timed for a pool by itself, where the cluster has many chips
_IMPROVE = 2  # ways to use the pools from which single steps are tried
_SHOW = 8  # rows of the table of alternatives


@dataclass(frozen=True)
class Search:
    """One search in one setting.

    Attributes:
        robust: rank plans by the upper end of their predicted interval instead of its middle.
    """

    setting: Setting
    progress: Callable[[str], None] = lambda _: None
    robust: bool = False

    @cached_property
    def finder(self) -> ShapeFinder:
        return ShapeFinder(self.setting)

    @cached_property
    def generator(self) -> Generator:
        return Generator.of(self.setting)

    @cached_property
    def pools(self) -> tuple[str, ...]:
        """Addresses of the pools whose chips have the job's precision."""
        return self.generator.pools

    def best(self) -> Plan:
        """The plan that serves the job's objective best, with its alternatives.

        Raises:
            PlanError: nothing fits; says by how many GiB on which chip.
        """
        if not self.pools:
            raise no_arithmetic(self.setting)
        scored = self._scored
        if not scored:
            raise refusal(self.finder, self.pools)
        scored = [*self._improved, *scored]
        alone = {pool: items[0].tokens_per_s if items else 0.0 for pool, items in
                 self._singles.items()}  # fmt: skip
        scored = [with_alone(item, alone) for item in scored]
        even = self._even(scored)
        if even is not None:
            even = with_alone(even, alone)
            # Gradient sums can favour equal cuts: the even split runs in the race.
            scored.append(even)
        order = ordered(scored, self.setting, robust=self.robust)
        placed = polished(order[0], self.setting)
        if placed is not None and placed.seconds < order[0].seconds:
            order[0] = with_alone(placed, alone)
        chosen = order[0]
        shown = one_of_each_way([item for item in order if item is not even])[:_SHOW]
        rows = [
            self._row(item, chosen, "even split: " if item is even else "")
            for item in order
            if item is even or any(item is other for other in shown)
        ]
        plan = self._plan(chosen)
        return replace(
            plan,
            alternatives=tuple(rows),
            explanation=(*self._explain(chosen), *explain(plan, self.setting)),
            lower_bound_seconds=self._bound(chosen),
            node_values=self._node_values(),
        )

    @cached_property
    def _improved(self) -> list[Scored]:
        """The best plan of each of the best ways to use the pools, where small, after every
        single step that helps; and the best of all with its batch dealt anew."""
        key = rank(self.setting, robust=self.robust)
        improver = Improver(self.setting, self.pools, key)
        starts = one_of_each_way(sorted(self._scored, key=key))[:_IMPROVE]
        found = [improver.improved(item) for item in starts]
        found = [item for item, start in zip(found, starts, strict=True) if item is not start]
        return [*found, *self._redealt(min([*found, *starts], key=key))]

    def _redealt(self, item: Scored) -> list[Scored]:
        """The same pipelines where others of them take the last micro-batches, if that helps:
        where their chips are decides how fast they are."""
        lasts, at = [], 0
        for each in item.team:
            lasts.append(max(item.last_backward(p) for p in range(at, at + each.count)))
            at += each.count
        team = redealt(self.generator, item.team, lasts)
        return score_all([team], self.setting, self._known) if team else []

    def _node_values(self) -> dict[str, float]:
        """Per pool, seconds of a step that one more node would save."""
        generator, deadline = self.generator, self._deadline
        if not np.isfinite(deadline):
            return {}
        mix = generator.mix(deadline)
        rates = [column.micro_batch_size / generator.pace(column).each for column in
                 generator.columns]  # fmt: skip
        rate = float(mix.uses @ np.array(rates))  # sequences that one second more delivers
        if not rate:
            return {}  # the best mix of fractions does not reach the batch
        saved = {}
        for pool, value in zip(self.pools, mix.chip_values, strict=True):
            more = float(value) * self.setting.pool(pool).chips_per_node  # sequences
            saved[pool] = more / rate / (1 + more / generator.batch)
        return saved

    def _bound(self, chosen: Scored) -> float | None:
        """A step no plan goes below, where time is the objective."""
        if self.setting.job.plan.objective != "time" or not np.isfinite(self._deadline):
            return None
        return min(self._proven.seconds, chosen.seconds)

    @cached_property
    def _proven(self) -> Bound:
        return Bound(self.generator)

    def best_few(self, count: int) -> tuple[Plan, ...]:
        """The best plan and those that come next, each a way of its own to use the pools."""
        best = self.best()
        alone = best.prediction.alone_tokens_per_s if best.prediction else {}
        order = one_of_each_way(ordered(self._scored, self.setting, robust=self.robust))
        plans = {best.digest: best}
        for item in order:
            plan = self._plan(with_alone(item, alone))
            plans.setdefault(plan.digest, plan)
        return tuple(plans.values())[:count]

    def alone(self, pool: str) -> Plan | None:
        """The fastest plan on one pool by itself; None when the model does not fit there."""
        return _fastest(self._singles.get(pool, []))

    def even(self) -> Plan | None:
        """The fastest plan that treats every chip alike: equal layers, equal micro-batches.
        None when no such plan fits."""
        even = self._even(self._scored)
        return _fastest([even] if even else [])

    @cached_property
    def _singles(self) -> dict[str, list[Scored]]:
        """Plans on each pool by itself, fastest first."""
        return {pool: self._single(pool) for pool in self.pools}

    def _single(self, pool: str) -> list[Scored]:
        self.progress(pool)
        generator = Generator.of(self.setting, (pool,))
        found = []
        for size in generator.pricers:
            if generator.batch % size == 0:
                for candidate in self.finder.best((pool,), size, generator.batch):
                    team = deal(generator, {column_of(candidate): candidate.shape.pipelines})
                    if team is not None:
                        found.append(team)
        found.sort(key=lambda team: estimate(generator, team))
        promising = _most_promising(found, 1)
        if self.setting.cluster.num_chips > _MANY:
            promising = promising[:_SCORE_ALONE]
        scored = score_all(promising, self.setting, self._known)
        if scored:
            quickest = Improver(self.setting, (pool,), lambda item: (item.seconds,))
            better = quickest.improved(scored[0], _TRIES_ALONE)
            scored = scored if better is scored[0] else [better, *scored]
        return scored

    @cached_property
    def _deadline(self) -> float:
        """The step of the best mix of fractions of pipelines; infinite where nothing fits."""
        if self.setting.job.plan.objective == "time":
            self.progress("a bound on every plan")
            if not np.isfinite(self._proven.seconds):
                return np.inf
            # A proof looks closer than column generation does: what it found is worth having.
            self.generator.take_columns_of(self._proven.floor)
        return self.generator.generate()

    @cached_property
    def _known(self) -> dict[Team, Scored | None]:
        """Every team that was scored."""
        return {}

    @cached_property
    def _quick(self) -> list[Scored]:
        """Complete plans as quick as can be, those of single pools included, whatever the
        objective."""
        singles = [item for items in self._singles.values() for item in items]
        self.progress(" + ".join(self.pools))
        deadline = self._deadline
        if not np.isfinite(deadline):
            return singles
        able = [pool for pool, items in self._singles.items() if items]
        found = _most_promising(teams(self.generator, self.finder, deadline, able))
        return [*score_all(found, self.setting, self._known), *singles]

    @cached_property
    def _scored(self) -> list[Scored]:
        """Complete plans, fastest first."""
        objective, quick, cheap = self.setting.job.plan.objective, self._quick, []
        if objective != "time" and np.isfinite(self._deadline):
            limit = None
            if isinstance(objective, Deadline):
                limit = objective.seconds / self.setting.job.train.num_steps
            found = _most_promising(cheap_teams(self.generator, self._deadline, limit))
            there = {item.team for item in quick}
            found = [team for team in found if team not in there]
            cheap = score_all(found, self.setting, self._known)
        return sorted([*cheap, *quick], key=lambda item: item.seconds)

    def under(self, objective: Literal["time", "money"] | Deadline) -> Search:
        """The search for another objective; what does not depend on it is found once for both."""
        plan = replace(self.setting.job.plan, objective=objective)
        job = replace(self.setting.job, plan=plan)
        other = replace(self, setting=replace(self.setting, job=job))
        for name in ("_known", "finder", "generator", "_singles", "_deadline", "_quick"):
            other.__dict__[name] = getattr(self, name)
        return other

    def _plan(self, item: Scored) -> Plan:
        """With the job of this search: teams scored under another objective are as good."""
        job = self.setting.job
        return replace(
            item.plan, job=job.to_table(), job_digest=job.digest,
            prediction=item.forecast.prediction,
        )  # fmt: skip

    def _even(self, scored: Sequence[Scored]) -> Scored | None:
        """The fastest even split of the teams that use every pool."""
        layers = len(self.setting.model.layers)
        most = _EVEN if self.setting.cluster.num_chips <= _MANY else _EVEN_MANY
        found: list[Team] = []
        for item in scored:
            sizes = {c.column.micro_batch_size for c in item.team}
            used = {pool for c in item.team for pool in c.column.chips}
            if used != set(self.pools) or len(sizes) > 1 or len(found) == most:
                continue
            total = self.setting.job.train.global_batch // sizes.pop()
            dealt = deal_evenly(sum(c.count for c in item.team), total)
            team, at = [], 0
            for c in item.team:
                team.append(
                    PipelineClass(with_even_layers(c.column, layers), dealt[at : at + c.count])
                )
                at += c.count
            found.append(tuple(team))
        return next(iter(score_all(found, self.setting, self._known)), None)

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

    def _explain(self, chosen: Scored) -> list[str]:
        lines = []
        used = set(chosen.plan.chips)
        for pool in self.setting.cluster.pools:
            idle = [chip for chip in pool.chip_addresses() if chip not in used]
            if not idle:
                continue
            if pool.address not in self.pools:
                why = f"{pool.chip.key} has no {self.setting.precision}"
            elif len(idle) == pool.num_chips:
                why = "with them the plan would be worse by the job's objective"
            else:
                why = "they do not fill another whole pipeline"
            lines.append(f"{len(idle)} of {pool.num_chips} chips of {pool.address} unused: {why}")
        return lines


def _most_promising(found: Sequence[Team], least: int = _SCORE_LEAST) -> list[Team]:
    """The first teams, and the first of every way to use the pools, within the passes
    that can be timed exactly."""
    chosen, ways, passes = [], set(), 0
    for team in found:
        mine = way(team)
        if len(chosen) < _SCORE or mine not in ways:
            size = sum(
                len(item.column.stages) * sum(set(item.micro_batches)) + 10 * item.count
                for item in team
            )
            if passes + size > _SCORE_PASSES and len(chosen) >= least:
                continue
            passes += size
            chosen.append(team)
        ways.add(mine)
    return chosen


def _fastest(scored: Sequence[Scored]) -> Plan | None:
    if not scored:
        return None
    best = min(scored, key=lambda item: item.seconds)
    return replace(best.plan, prediction=best.forecast.prediction)
