"""Messages and sums on measured curves, with the sharing of a node's link."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.predict.collectives import group_all_reduce_seconds, message_seconds
from pluribus.predict.curves import message_flows, ring_flows
from pluribus.predict.predict import forecast
from pluribus.predict.schedule import gradient_groups
from pluribus.predict.software import MEGATRON_DEEPSPEED
from pluribus.spec.plan import Pipeline, Stage
from pluribus.spec.profile import LinkCurve, Profile

from ..small import make_chip, make_job, make_model, make_plan, make_pool, make_setting

A, B = make_chip("a", precisions=("fp32",)), make_chip("b", precisions=("fp32",))
POOLS = (
    make_pool("a", A, nodes=2, chips_per_node=4),
    make_pool("b", B, nodes=2, chips_per_node=4),
)


def curve(
    between: tuple[str, str], chips: int = 1, rate: float = 1e9, inside: bool = False
) -> LinkCurve:
    return LinkCurve(between=between, chips=chips, inside=inside, points=((1.0, rate),))


PROFILE = Profile(
    curves=(
        curve(("a", "a"), 1, 1e9), curve(("a", "a"), 4, 2e9), curve(("a", "b"), 2, 1e8),
        curve(("a", "a"), 4, 4e10, inside=True),
    )
)  # fmt: skip
SETTING = make_setting(POOLS, make_model(blocks=6), make_job(precision="fp32"), profile=PROFILE)
CLUSTER = SETTING.cluster


@pytest.mark.parametrize(
    ("flows", "seconds"),
    [
        (1, 1e6 / 1e9),  # the fewest measured
        (4, 1e6 * 4 / 2e9),
        (2, 1e6 * 2 / (1e9 + 1e9 / 3)),  # between one chip's and four chips' rate
        (8, 1e6 * 8 / 2e9),  # never more than the most measured reach
    ],
)
def test_messages_share_what_chips_reach_together(flows: int, seconds: float) -> None:
    time = message_seconds(1e6, "here/a/0/0", "here/a/1/0", CLUSTER, PROFILE, flows)
    assert time == pytest.approx(seconds)


def test_one_of_several_measured_chips_has_its_share() -> None:
    time = message_seconds(1e6, "here/a/0/0", "here/b/0/0", CLUSTER, PROFILE)
    assert time == pytest.approx(1e6 / (1e8 / 2))
    assert time == message_seconds(1e6, "here/b/1/0", "here/a/0/0", CLUSTER, PROFILE)


def test_a_message_of_no_bytes_takes_as_long_as_the_smallest() -> None:
    slow = replace(curve(("a", "a")), points=((1e3, 1e6), (1e6, 1e9)))
    chips, profile = ("here/a/0/0", "here/a/1/0"), Profile(curves=(slow,))
    for num_bytes in (0.0, 1.0, 1e3):
        seconds = message_seconds(num_bytes, *chips, CLUSTER, profile)
        assert seconds == pytest.approx(1e-3)
    assert group_all_reduce_seconds(0.0, chips, CLUSTER, profile) == pytest.approx(2e-3)


def test_a_link_without_a_curve_keeps_the_clusters() -> None:
    pair = ("here/b/0/0", "here/b/1/0")
    assert message_seconds(1e6, *pair, CLUSTER, PROFILE) == message_seconds(
        1e6, *pair, CLUSTER, None
    )


def test_a_ring_waits_for_its_slowest_hop_and_its_neighbours_on_the_link() -> None:
    chips = ["here/a/0/0", "here/a/1/0", "here/b/0/0"]
    flows = {"here/a/0": 2.0, "here/a/1": 2.0, "here/b/0": 2.0}
    every_hop = Profile(curves=(*PROFILE.curves, curve(("here/b", "a"), 2, 1e8)))
    seconds = group_all_reduce_seconds(3e6, chips, CLUSTER, every_hop, flows=flows)
    assert seconds == pytest.approx(4 * 1e6 * 2 / 1e8)


def test_a_hop_without_a_curve_leaves_the_sum_to_the_formula() -> None:
    chips = ["here/b/0/0", "here/b/1/0"]
    assert group_all_reduce_seconds(1e6, chips, CLUSTER, PROFILE) == group_all_reduce_seconds(
        1e6, chips, CLUSTER, None
    )


def stage(node: str, layers: tuple[int, int], tp: int, first: int = 0) -> Stage:
    chips = tuple(f"here/{node}/{chip}" for chip in range(first, first + tp))
    return Stage(chips=chips, layers=layers, tensor_parallel=tp)


def pipeline(*stages: Stage) -> Pipeline:
    return Pipeline(stages=stages, micro_batch_size=1, micro_batches=4)


def test_rings_of_a_node_are_counted_by_tensor_parallel_rank() -> None:
    plan = make_plan(
        SETTING, pipeline(stage("a/0", (0, 8), 2)), pipeline(stage("a/0", (0, 8), 2, 2)),
        pipeline(stage("b/0", (0, 8), 4)),
    )  # fmt: skip
    flows = ring_flows(plan, gradient_groups(plan))
    # Two replicas on one node are one ring per rank; the other node has four ranks.
    assert flows == {"here/a/0": 2.0, "here/b/0": 4.0}


def test_replicas_of_different_stages_share_the_nodes_link() -> None:
    pipelines = [
        pipeline(stage(f"{kind}/0", (0, 4), 2), stage(f"{kind}/0", (4, 8), 2, 2)) for kind in "ab"
    ]
    plan = make_plan(SETTING, *pipelines)
    assert ring_flows(plan, gradient_groups(plan)) == {"here/a/0": 4.0, "here/b/0": 4.0}
    assert message_flows(plan, True) == {}  # neighbours sit on one node


def test_messages_that_leave_a_node_at_once() -> None:
    pipelines = [
        pipeline(stage("a/0", (0, 4), 2, 2 * i), stage("a/1", (4, 8), 2, 2 * i)) for i in range(2)
    ]
    plan = make_plan(SETTING, *pipelines)
    assert message_flows(plan, scattered=True) == {"here/a/0": 4, "here/a/1": 4}
    assert message_flows(plan, scattered=False) == {"here/a/0": 2, "here/a/1": 2}


def test_the_program_that_trains_decides_what_a_message_costs() -> None:
    plan = make_plan(SETTING, pipeline(stage("a/0", (0, 4), 2), stage("b/0", (4, 8), 2)))
    free = forecast(plan, SETTING, {}).prediction
    theirs = replace(MEGATRON_DEEPSPEED, message_byte_s=0.0)
    blocking = forecast(plan, replace(SETTING, software=theirs), {}).prediction
    # Scattered: two ranks send half each, and share what two chips reach together.
    message = SETTING.boundary_bytes(plan.pipelines[0]) / 1e8
    slowest = max(s.forward + s.backward for s in blocking.stages[0])
    assert blocking.step_seconds.mid > 4 * (slowest + 2 * message)
    assert blocking.step_seconds.mid != free.step_seconds.mid
