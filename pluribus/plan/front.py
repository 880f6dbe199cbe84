"""The front between time and money: the cheapest plan for every time a job may take.

A plan is on the front if no other is both quicker and cheaper. The ends are the quickest and the
cheapest plan; between them the job is planned again under deadlines spaced evenly by ratio, with
the pipelines and plans that were found for the quickest (`Search.under`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pluribus.core.errors import PlanError
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Plan

_SAME = 1e-6  # plans nearer than this in time and money are one point


def pareto_front(
    setting: Setting, points: int = 9, progress: Callable[[str], None] = lambda _: None
) -> tuple[Plan, ...]:
    """Plans none of which is both slower and dearer than another, quickest first.

    Args:
        setting: the job, whatever its objective, on its cluster.
        points: plans asked for, both ends included; fewer come back where the same plan answers
            several deadlines.

    Raises:
        PlanError: no plan fits, or no chip has a price.
    """
    if not any(pool.price_per_chip_hour for pool in setting.cluster.pools):
        raise PlanError(
            "the cluster has no prices, so there is nothing to weigh time against",
            where="cluster.toml",
            do="Give each [[pool]] its price_per_chip_hour.",
        )

    job = replace(setting.job, plan=replace(setting.job.plan, objective="time"))
    search = Search(replace(setting, job=job))
    progress("the quickest plan")
    found = [search.best()]
    progress("the cheapest plan")
    found.append(search.under("money").best())
    low, high = (seconds_of(plan) * setting.job.train.num_steps for plan in found)
    for i in range(1, points - 1 if high > low else 1):
        deadline = low * (high / low) ** (i / (points - 1))
        progress(f"the cheapest plan within {deadline / 3600:.1f} h")
        found.append(search.under(Deadline(deadline=f"{deadline:.6f}s")).best())
    return undominated(found)


def undominated(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans that no other beats in both time and money, quickest first."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (seconds_of(plan), money_of(plan))):
        if not kept or money_of(plan) < money_of(kept[-1]) * (1 - _SAME):
            kept.append(plan)
    return tuple(kept)


def seconds_of(plan: Plan) -> float:
    """Of one step, as predicted."""
    assert plan.prediction is not None
    return plan.prediction.step_seconds.mid


def money_of(plan: Plan) -> float:
    """Of one step, as predicted."""
    assert plan.prediction is not None
    return plan.prediction.money_per_step
