"""Sums and messages of one plan that meet on a link: by hand, and against regular layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.hardware.link import LinkSpec
from pluribus.model.model import Model
from pluribus.predict.crossing import crossing
from pluribus.predict.gradients import Phase, gradient_sum
from pluribus.predict.predict import forecast
from pluribus.predict.regular import Layout, regular_terms
from pluribus.predict.regular_plan import regular_pipelines
from pluribus.predict.schedule import ActionKind, GradientGroup, gradient_groups
from pluribus.predict.setting import Setting
from pluribus.predict.tail import shared_sums
from pluribus.spec.plan import Pipeline, Plan, Stage

from ..small import make_job, make_model, make_pipeline, make_plan, make_pool, make_setting
from .test_regular import DENSE, POOL, SEQUENCE

PAIR = (((0, 0), (1, 0)), ((0, 1), (1, 1)))  # lanes of two pipelines of two stages
GROUPS = tuple(GradientGroup((i,), holders) for i, holders in enumerate(PAIR))
LINK = ("a", "b")


def seconds(
    phases: list[list[Phase]], start: dict, capacity: float = 100.0, groups: tuple = GROUPS
) -> list[float]:
    return shared_sums(groups, phases, {LINK: capacity}, start).seconds


def test_sums_that_meet_on_a_link_divide_it() -> None:
    """Each fills the link alone: the second comes when the first is half done."""
    each = [Phase(10.0, {LINK: 1000.0}, 1)]
    together = dict.fromkeys([lane for pair in PAIR for lane in pair], 0.0)
    assert seconds([each, each], together) == pytest.approx([20.0, 20.0])
    later = {**together, (0, 1): 5.0}
    assert seconds([each, each], later) == pytest.approx([15.0, 15.0])
    apart = {**together, (1, 1): 10.0}
    assert seconds([each, each], apart) == pytest.approx([10.0, 10.0])
    assert seconds([each, each], together, capacity=200.0) == pytest.approx([10.0, 10.0])


def test_a_link_is_shared_ring_by_ring() -> None:
    """Three rings against one; and a sum that needs little of the link is not held up."""
    start = dict.fromkeys([lane for pair in PAIR for lane in pair], 0.0)
    wide, narrow = [Phase(10.0, {LINK: 1000.0}, 3)], [Phase(10.0, {LINK: 1000.0}, 1)]
    # 3/4 and 1/4 of the link until the wide one is done at 13.3; 667 bytes are left of 1000.
    assert seconds([wide, narrow], start) == pytest.approx([40 / 3, 40 / 3 + 20 / 3])
    small = [Phase(10.0, {LINK: 100.0}, 1)]
    both = seconds([wide, small], start)
    assert both[1] == pytest.approx(10.0)
    assert both[0] == pytest.approx(11.0)


def test_what_a_sum_does_elsewhere_holds_nobody_up() -> None:
    start = dict.fromkeys([lane for pair in PAIR for lane in pair], 0.0)
    crosses = [Phase(4.0, {}, 1), Phase(10.0, {LINK: 1000.0}, 1)]
    # The first is alone on the link for 4 s; they share it for 12, and the other has 4 s left.
    assert seconds([[Phase(10.0, {LINK: 1000.0}, 1)], crosses], start) == pytest.approx([16, 20])


def test_groups_of_one_stage_wait_for_each_other() -> None:
    holders = ((0, 0), (1, 0))
    groups = (GradientGroup((0,), holders), GradientGroup((1,), (*holders, (2, 0))))
    start = {(0, 0): 0.0, (1, 0): 2.0, (2, 0): 1.0}
    sums = shared_sums(groups, [[Phase(3.0, {}, 1)], [Phase(4.0, {}, 1)]], {}, start)
    assert sums.begin == [2.0, 5.0]
    assert sums.end == [5.0, 9.0]


# Three pools in a row: a fast link to the middle, a slow one between the ends.
ROW = make_setting(
    [make_pool(name, nodes=4, chips_per_node=2, gbps=80) for name in "abc"],
    links=(
        LinkSpec(between=("here/a", "here/b"), gbps=80, latency_us=10),
        LinkSpec(between=("here/b", "here/c"), gbps=80, latency_us=10),
        LinkSpec(between=("here/a", "here/c"), gbps=0.8, latency_us=10),
    ),
).cluster


def test_a_sum_goes_around_a_slow_link() -> None:
    members = {"here/a": 1, "here/b": 2, "here/c": 1}
    way = crossing(1e9, members, ROW)
    # To the middle and back over 10 GB/s; a ring would need 4/3 GB over 0.1 GB/s.
    assert way.seconds == pytest.approx(2 * (10e-6 + 1e9 / 10e9))
    assert ("here/a", "here/c") not in way.wire
    two = crossing(1e9, {"here/a": 1, "here/b": 1}, ROW)
    assert two.seconds == pytest.approx(2 * 10e-6 + 1e9 / 10e9)
    assert two.wire == {("here/a", "here/b"): 1e9}


def test_more_ranks_carry_more_until_the_link_is_full() -> None:
    narrow = crossing(1e9, {"here/a": 1, "here/b": 1}, ROW, rings=4)
    wide = crossing(1e9, {"here/a": 4, "here/b": 4}, ROW)
    assert narrow.seconds == pytest.approx(2 * 10e-6 + 4e9 / 10e9)
    assert wide.seconds == pytest.approx(2 * 10e-6 + 1e9 / 10e9)


def two_pools(gbps: float = 8.0) -> Setting:
    pools = [make_pool(name, chips_per_node=8, gbps=80) for name in "ab"]
    links = (LinkSpec(between=("here/a", "here/b"), gbps=gbps, latency_us=10),)
    return make_setting(pools, make_model(blocks=8, hidden=256), make_job(batch=32), links)


def pipelines(setting: Setting, stages: int) -> Plan:
    """One pipeline in each pool, of so many stages of equal blocks."""
    cuts = {1: (0, 10), 2: (0, 5, 10), 4: (0, 3, 5, 7, 10)}[stages]
    return make_plan(
        setting,
        *(
            make_pipeline(
                *((f"here/{pool}/0/{s}", cuts[s], cuts[s + 1]) for s in range(stages)),
                micro_batches=1,
            )
            for pool in "ab"
        ),
    )


def test_stages_share_the_link_between_the_pools() -> None:
    """However many stages the gradients are divided over, the link moves as many bytes."""
    setting = two_pools(gbps=0.1)
    model_bytes = 4 * setting.model.num_parameters
    for stages in (1, 2, 4):
        result = forecast(pipelines(setting, stages), setting, {})
        spans = [
            span
            for lane in result.timeline.lanes.values()
            for span in lane
            if span.action.kind is ActionKind.REDUCE
        ]
        begin = min(span.start for span in spans)
        end = max(span.end for span in spans)
        # Nothing crosses before the first sum begins, and the link is never idle until the end.
        moved = model_bytes / (0.1e9 / 8)
        assert end - begin == pytest.approx(moved, rel=0.02)


def test_pipelines_over_the_same_link_send_in_turn() -> None:
    setting = two_pools(gbps=0.8)

    def step(count: int) -> float:
        plan = make_plan(
            setting,
            *(
                make_pipeline((f"here/a/0/{p}", 0, 5), (f"here/b/0/{p}", 5, 10), micro_batches=4)
                for p in range(count)
            ),
        )
        timeline = forecast(plan, setting, {}).timeline
        spans = timeline.lanes[0, 1]
        return next(s.end for s in spans if s.action.kind is ActionKind.RECV_ACTIVATION)

    message = 128 * 256 * 2 / 0.1e9
    assert step(4) - step(1) == pytest.approx(3 * message)


@pytest.mark.parametrize("adapters", [1, 2, 4])
def test_adapters_that_chips_share_cost_a_plan_what_they_cost_a_layout(adapters: int) -> None:
    pool = replace(POOL, nics_per_node=adapters)
    for layout in (
        Layout(tp=8, dp=4, global_batch=4),
        Layout(tp=2, dp=8, pp=2, global_batch=256),
        Layout(tp=8, dp=4, zero=1, global_batch=4),
        Layout(tp=8, dp=4, zero=3, global_batch=8),
    ):
        setting = make_setting([pool], DENSE, make_job(layout.global_batch, sequence=SEQUENCE))
        plan = make_plan(setting, *regular_pipelines(DENSE, pool, layout))
        closed = regular_terms(DENSE, pool, layout, SEQUENCE, "bf16").seconds()
        found = forecast(plan, setting, {}).prediction
        assert found.step_seconds.mid == pytest.approx(closed, rel=0.02)
        assert found.breakdown.gradient_sync > 0


def test_a_chip_with_silent_neighbours_has_an_adapter_to_itself() -> None:
    """One adapter for eight chips: one ring alone is eight times faster than eight."""
    pool = make_pool("a", nodes=2, chips_per_node=8, gbps=8)
    model = make_model(blocks=8, hidden=256)
    shared = make_setting([replace(pool, nics_per_node=1)], model, make_job(batch=8))
    own = make_setting([pool], model, make_job(batch=8))

    def sums(setting: Setting, ranks: int) -> float:
        stages = [(f"here/a/{{}}/{i}", i, i + 1) for i in range(ranks - 1)]
        stages.append((f"here/a/{{}}/{ranks - 1}", ranks - 1, 10))
        plan = make_plan(
            setting,
            *(
                make_pipeline(*((c.format(n), a, b) for c, a, b in stages), micro_batches=1)
                for n in range(2)
            ),
        )
        return forecast(plan, setting, {}).prediction.breakdown.gradient_sync

    assert sums(own, 1) == pytest.approx(8 * sums(shared, 1), rel=0.02)


def unlike(model: Model, degrees: tuple[int, int]) -> tuple[Plan, Setting]:
    pool = make_pool("a", nodes=2, chips_per_node=8, gbps=80)
    setting = make_setting([pool], model, make_job(batch=8))
    plan = make_plan(
        setting,
        *(
            Pipeline(
                stages=(
                    Stage(
                        chips=tuple(f"here/a/{n}/{i}" for i in range(tp)), layers=(0, 10),
                        tensor_parallel=tp,
                    ),
                ),
                micro_batch_size=1, micro_batches=4,
            )
            for n, tp in enumerate(degrees)
        ),
    )  # fmt: skip
    return plan, setting


def test_unlike_tensor_parallel_replicas_pay_for_the_narrower_side() -> None:
    """Its ranks carry the gradients of several, and both sides cut them anew."""
    model = make_model(blocks=8, hidden=1024)

    def total(*degrees: int) -> float:
        plan, setting = unlike(model, degrees)
        (group,) = gradient_groups(plan)
        return sum(phase.seconds for phase in gradient_sum(plan, setting, group))

    assert total(2, 4) > total(2, 2) > total(4, 4)
    assert total(2, 4) > 1.5 * total(4, 4)
