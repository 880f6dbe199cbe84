"""Local search on small plans."""

from __future__ import annotations

import pytest

from pluribus.plan.columns import Column, PipelineClass, StageChoice, StageKind, Team
from pluribus.plan.improve import MOST_STAGES, Improver, rank
from pluribus.plan.score import Scored, score
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline

from ..small import make_chip, make_job, make_model, make_pool, make_setting

POOLS = [make_pool("a", make_chip("fast", 4)), make_pool("b", make_chip("slow", 2))]


def setting(objective: str | Deadline = "time") -> Setting:
    job = make_job(batch=12, sizes=(1,), sequence=512, objective=objective)
    return make_setting(POOLS, make_model(blocks=6, hidden=256), job)


def stage(pool: str, first: int, end: int) -> StageChoice:
    return StageChoice(StageKind(f"here/{pool}", 1, "none"), (first, end))


def scored(team: Team, where: Setting) -> Scored:
    result = score(team, where)
    assert result is not None
    return result


def one_pipeline(cut: int, where: Setting) -> Scored:
    column = Column((stage("a", 0, cut), stage("b", cut, 8)), 1)
    return scored((PipelineClass(column, (12,)),), where)


def improver(where: Setting) -> Improver:
    return Improver(where, [pool.address for pool in POOLS], rank(where))


def test_a_bad_border_moves_until_no_step_helps() -> None:
    where = setting()
    search = improver(where)
    start = one_pipeline(1, where)
    best = search.improved(start)
    assert best.seconds < 0.8 * start.seconds
    assert best.seconds <= min(one_pipeline(cut, where).seconds for cut in range(1, 8))
    assert 0 < search.timed <= 150
    # From its own end there is nothing better one step away.
    assert improver(where).improved(best).seconds == pytest.approx(best.seconds)


def test_it_stops_at_its_limit_and_gives_the_same_each_time() -> None:
    where = setting()
    start = one_pipeline(1, where)
    first, second = improver(where), improver(where)
    assert first.improved(start, 3).plan == second.improved(start, 3).plan
    assert first.timed == second.timed == 3


def test_a_plan_of_many_stages_is_left_alone() -> None:
    chips = MOST_STAGES + 1
    where = make_setting(
        [make_pool("a", nodes=chips)], make_model(blocks=1), make_job(batch=chips, sizes=(1,))
    )
    column = Column((stage("a", 0, 3),), 1)
    start = scored((PipelineClass(column, (1,) * chips),), where)
    search = Improver(where, ["here/a"], rank(where))
    assert search.improved(start) is start
    assert search.timed == 0


def test_the_rank_is_the_objective() -> None:
    quick, slow = one_pipeline(5, setting()), one_pipeline(1, setting())
    assert rank(setting("time"))(quick) < rank(setting("time"))(slow)
    assert rank(setting("money"))(quick)[0] == quick.money
    # A plan that ends in time comes before one that does not, whatever it costs.
    steps = setting().job.train.num_steps
    limit = (quick.seconds + slow.seconds) / 2 * steps
    late = rank(setting(Deadline(deadline=f"{limit:.6f}s")))
    assert late(quick)[0] == 0
    assert late(slow)[0] == 1
