from __future__ import annotations

from pluribus.plan.explain import explain
from pluribus.predict.predict import with_prediction
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan

from ..small import (
    make_chip,
    make_job,
    make_model,
    make_pipeline,
    make_plan,
    make_pool,
    make_setting,
)


def small(gib: float = 16) -> Setting:
    pools = [
        make_pool("a", make_chip("fast", 30), nodes=4),
        make_pool("b", make_chip("slow", 10, gib=gib), nodes=4),
    ]
    job = make_job(batch=8, sequence=1024, sizes=(1,))
    return make_setting(pools, make_model(blocks=8, hidden=1024), job)


def planned(setting: Setting, *pipelines: Pipeline) -> Plan:
    return with_prediction(make_plan(setting, *pipelines), setting, {})


def test_it_says_who_does_how_much_of_the_work() -> None:
    setting = small()
    plan = planned(setting, make_pipeline(("here/a/0/0", 0, 7), ("here/b/0/0", 7, 10),
                                          micro_batches=8))  # fmt: skip
    first, second, _ = explain(plan, setting)
    assert first.startswith("here/a does ")
    assert "with 75% of the arithmetic in use: 1 chips, busy" in first
    assert second.startswith("here/b does ")
    shares = [int(line.partition("does ")[2].partition("%")[0]) for line in (first, second)]
    assert sum(shares) == 100
    assert 60 < shares[0] < 80


def test_it_says_what_moving_a_layer_off_the_bottleneck_would_do() -> None:
    setting = small()
    plan = planned(
        setting,
        make_pipeline(("here/a/0/0", 0, 4), ("here/b/0/0", 4, 9), ("here/a/1/0", 9, 10),
                      micro_batches=8),
    )  # fmt: skip
    line = explain(plan, setting)[-1]
    assert "the bottleneck is stage 2 of pipeline 1 (1 × slow, blocks 3–7)" in line
    assert "with a layer of it stage 1 would take" in line
    assert "with a layer of it stage 3 would take" in line


def test_it_says_what_a_neighbour_lacks() -> None:
    setting = small(gib=2.4)
    plan = planned(
        setting,
        make_pipeline(("here/b/0/0", 0, 2), ("here/a/0/0", 2, 9), ("here/b/1/0", 9, 10),
                      micro_batches=8, recompute="full"),
    )  # fmt: skip
    line = explain(plan, setting)[-1]
    assert "1 × fast" in line
    assert "with a layer of it stage 1 would lack" in line
    assert "GiB" in line


def test_equal_stages_are_even_work() -> None:
    setting = small()
    chips = [f"here/a/{n}/0" for n in range(4)]
    plan = planned(setting, *(make_pipeline((chip, 0, 10), micro_batches=2) for chip in chips))
    (line,) = explain(plan, setting)
    assert line.endswith("all stages are as slow: the work is even")


def test_it_says_why_the_stage_that_waits_most_takes_no_more() -> None:
    """The head alone on a slow chip: it has room, so the cut is not the best."""
    setting = small()
    plan = planned(
        setting,
        make_pipeline(("here/a/0/0", 0, 5), ("here/a/1/0", 5, 9), ("here/b/0/0", 9, 10),
                      micro_batches=8),
    )  # fmt: skip
    line = explain(plan, setting)[-1]
    assert "2 of 3 stages are as slow; stage 3 waits most (busy " in line
    assert line.endswith("and with a layer more it would take 8.2 ms")
