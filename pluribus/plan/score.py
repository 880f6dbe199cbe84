"""Teams as complete plans with their forecast, and which of them is best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pluribus.core.errors import PlanError
from pluribus.plan.columns import Column, Team
from pluribus.plan.placement import POLISHED, place, unplaced
from pluribus.plan.split import even_split
from pluribus.predict.predict import Forecast, forecast
from pluribus.predict.setting import Setting
from pluribus.spec.calibration import IDENTITY
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Pipeline, Plan, Stage


@dataclass(frozen=True)
class Scored:
    """A complete plan with its forecast."""

    team: Team
    plan: Plan
    forecast: Forecast

    @property
    def seconds(self) -> float:
        return self.forecast.prediction.step_seconds.mid

    @property
    def high(self) -> float:
        """The upper end of the interval of the step."""
        return self.forecast.prediction.step_seconds.high

    @property
    def money(self) -> float:
        return self.forecast.prediction.money_per_step

    @property
    def tokens_per_s(self) -> float:
        return self.forecast.prediction.tokens_per_s

    def last_backward(self, pipeline: int) -> float:
        """When a pipeline's first stage has done its last backward, its sums to come."""
        course = self.forecast.timeline.courses[pipeline, 0]
        return (course.before or course).end

    @property
    def fits(self) -> bool:
        return all(s.memory.fits for stages in self.forecast.prediction.stages for s in stages)


def score(team: Team, setting: Setting, *, polish: bool = False) -> Scored | None:
    """Places a team and forecasts it; None where it does not fit, in memory or into nodes."""
    try:
        pipelines = place(pipelines_of(team), setting, polish=polish)
    except PlanError:
        return None
    plan = Plan(
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
    item = Scored(team, plan, forecast(plan, setting, {}))
    return item if item.fits else None


def polished(item: Scored, setting: Setting) -> Scored | None:
    """The same team placed with polish; None where there is none that fits or is polished."""
    stages: Counter[str] = Counter()
    for each in item.team:
        for stage in each.column.stages:
            stages[stage.kind.pool] += each.count
    if min(stages.values()) > POLISHED:
        return None
    return score(item.team, setting, polish=True)


def score_all(
    teams: Iterable[Team], setting: Setting, known: dict[Team, Scored | None]
) -> list[Scored]:
    """The distinct teams that fit, fastest first.

    Args:
        known: what was scored before; what is new is added.
    """
    items = []
    for team in dict.fromkeys(teams):
        if team not in known:
            known[team] = score(team, setting)
        items.append(known[team])
    return sorted((item for item in items if item), key=lambda item: item.seconds)


def pipelines_of(team: Team) -> tuple[Pipeline, ...]:
    """A team's pipelines, with the pools of their stages but chips yet to be chosen."""
    result = []
    for item in team:
        stages = tuple(
            Stage(
                chips=unplaced(stage.kind.pool, stage.kind.num_chips),
                layers=stage.layers,
                tensor_parallel=stage.kind.tensor_parallel,
                context_parallel=stage.kind.context_parallel,
                expert_parallel=stage.kind.expert_parallel,
                recompute=stage.kind.recompute,
                zero=stage.kind.zero,
            )
            for stage in item.column.stages
        )
        for micro_batches in item.micro_batches:
            result.append(
                Pipeline(
                    stages=stages,
                    micro_batch_size=item.column.micro_batch_size,
                    micro_batches=micro_batches,
                    schedule=item.column.schedule,
                    virtual_stages=item.column.virtual_stages,
                )
            )
    return tuple(result)


def ordered(scored: Sequence[Scored], setting: Setting, *, robust: bool = False) -> list[Scored]:
    """Best first, by the job's objective.

    Args:
        robust: rank times by the upper end of their interval instead of its middle. The two
            agree where all plans are equally uncertain.

    Raises:
        PlanError: nothing meets the deadline.
    """

    def seconds(item: Scored) -> float:
        return item.high if robust else item.seconds

    objective = setting.job.plan.objective
    if objective == "time":
        return sorted(scored, key=seconds)
    if objective == "money":
        return sorted(scored, key=lambda item: (item.money, seconds(item)))
    assert isinstance(objective, Deadline)
    steps = setting.job.train.num_steps
    order = sorted(scored, key=seconds)
    in_time = [item for item in order if seconds(item) * steps <= objective.seconds]
    if not in_time:
        fastest = seconds(order[0]) * steps / 3600
        raise PlanError(
            f"no plan ends within {objective.deadline}; the fastest needs {fastest:.1f} h",
            where="job.toml [plan.objective]",
            do="Allow more time, fewer steps, or add chips.",
        )
    late = order[len(in_time) :]
    return sorted(in_time, key=lambda item: (item.money, seconds(item))) + late


def with_alone(item: Scored, alone: dict[str, float]) -> Scored:
    """The same with what each pool delivers alone, and the aggregation."""
    total = sum(alone.values())
    prediction = replace(
        item.forecast.prediction,
        alone_tokens_per_s=alone,
        aggregation=item.tokens_per_s / total if total else None,
    )
    return replace(item, forecast=replace(item.forecast, prediction=prediction))


def way(team: Team) -> tuple[tuple[str, ...], ...]:
    """How a team uses the pools: their order along each class of pipelines."""
    return tuple(sorted({item.column.pools for item in team}))


def one_of_each_way(order: Sequence[Scored]) -> list[Scored]:
    """The best of every way to use the pools, best first."""
    best: dict[tuple, Scored] = {}
    for item in order:
        best.setdefault(way(item.team), item)
    return list(best.values())


def with_even_layers(column: Column, num_layers: int) -> Column:
    """The same stages with equal numbers of layers, earlier ones taking the remainder."""
    cuts = even_split(num_layers, len(column.stages))
    stages = zip(column.stages, cuts, strict=True)
    return replace(column, stages=tuple(replace(s, layers=cut) for s, cut in stages))
