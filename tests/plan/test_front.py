from __future__ import annotations

import pytest

from pluribus.core.errors import PlanError
from pluribus.plan.front import money_of, pareto_front, seconds_of, undominated
from pluribus.plan.search import Search
from pluribus.plan.validate import check
from pluribus.predict.setting import Setting

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def test_the_front_goes_from_quickest_to_cheapest() -> None:
    """Three pools, the quicker the dearer: more of them is quicker and costs more."""
    pools = [
        make_pool(name, make_chip(f"chip-{name}", rate), nodes=2, price=price)
        for name, rate, price in (("a", 8, 20.0), ("b", 4, 4.0), ("c", 2, 1.0))
    ]
    job = make_job(24, sequence=1024, steps=1000, sizes=(1,))
    setting = make_setting(pools, make_model(blocks=8, hidden=512), job)
    lines: list[str] = []
    front = pareto_front(setting, 5, lines.append)
    seconds, money = [seconds_of(p) for p in front], [money_of(p) for p in front]
    assert len(front) >= 3
    assert seconds == sorted(seconds)
    assert money == sorted(money, reverse=True)
    assert len(set(money)) == len(money)
    assert seconds[0] == pytest.approx(seconds_of(Search(setting).best()))
    for plan in front:
        # The deadlines change the job's objective, not what a plan must be.
        assert check(plan, setting) == []
    assert len(lines) == 5


def test_one_search_serves_every_objective() -> None:
    """What does not depend on the objective is found once; the plan carries its own."""
    pools = [make_pool("a", make_chip("dear", 4), price=9), make_pool("b", make_chip("cheap", 2))]
    search = Search(make_setting(pools, make_model(blocks=4, hidden=512)))
    quick, other = search.best(), search.under("money")
    cheap = other.best()
    assert other.generator is search.generator
    assert money_of(cheap) == pytest.approx(money_of(Search(other.setting).best()))
    assert money_of(cheap) < money_of(quick)
    assert cheap.job["plan"]["objective"] == "money"
    assert cheap.job_digest == other.setting.job.digest != quick.job_digest
    assert Setting.of_plan(cheap).job.digest == cheap.job_digest


def test_a_dominated_plan_is_dropped() -> None:
    pools = [make_pool("a", make_chip("dear", 4), price=9), make_pool("b", make_chip("cheap", 2))]
    search = Search(make_setting(pools, make_model(blocks=4, hidden=512)))
    quick, slow = search.best(), search.alone("here/b")
    assert slow is not None
    assert undominated([slow, quick, quick]) == (quick, slow)
    assert undominated([slow]) == (slow,)


def test_without_prices_there_is_no_front() -> None:
    with pytest.raises(PlanError, match="has no prices"):
        pareto_front(make_setting([make_pool("a", price=0.0)]))
