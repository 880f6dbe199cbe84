"""What each pool delivers by itself: what aggregation is measured against."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan


def alone_rates(setting: Setting) -> dict[str, float]:
    """Tokens/s of each pool with its own best plan; 0 where the model does not fit or the pool
    lacks the job's precision."""
    search = Search(setting)
    rates = {}
    for pool in setting.cluster.pools:
        usable = pool.chip.supports(setting.precision)
        plan = search.alone(pool.address) if usable else None
        rates[pool.address] = plan.prediction.tokens_per_s if plan and plan.prediction else 0.0
    return rates


def known_or_searched(plan: Plan, setting: Setting) -> Mapping[str, float]:
    """The rates the plan carries, if they were predicted from the same facts; else new ones."""
    known = plan.prediction.alone_tokens_per_s if plan.prediction else {}
    same = Setting.of_plan(plan)
    if known and (same.profile, same.calibration) == (setting.profile, setting.calibration):
        return known
    return alone_rates(setting)
