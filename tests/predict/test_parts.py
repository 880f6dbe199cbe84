"""Seconds of collectives and layers, and bytes of a stage, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.core.units import GIB
from pluribus.hardware.link import LinkSpec
from pluribus.model.share import Share
from pluribus.predict.collectives import (
    group_all_reduce_seconds,
    message_seconds,
    ring_all_reduce_seconds,
)
from pluribus.predict.compute import (
    ROOFLINE_SPREAD,
    layer_time,
    stage_time,
)
from pluribus.predict.memory import stage_memory, stage_parameters
from pluribus.predict.operators import LAUNCH_SECONDS
from pluribus.predict.update import optimizer_seconds
from pluribus.spec.profile import LayerTime, LinkTime, OptimizerTime, Profile

from ..small import (
    SEQUENCE,
    make_chip,
    make_job,
    make_model,
    make_pipeline,
    make_pool,
    make_setting,
)

MB = 1e6


def measured_link(between: tuple[str, str], operation: str) -> Profile:
    link = LinkTime(between=between, operation=operation, latency_s=0.5, bytes_per_s=MB, spread=0.0)
    return Profile(cluster_digest="", links=(link,))


# Three pools: two nodes of two chips, and two single chips. 8 Gbit/s is 1e9 bytes/s.
POOLS = (
    make_pool("a", nodes=2, chips_per_node=2, gbps=8),
    make_pool("b", gbps=8),
    make_pool("c", gbps=80),
)
LINKS = (LinkSpec(between=("here/a", "here/b"), gbps=4, latency_us=100),)
CLUSTER = make_setting(POOLS, links=LINKS).cluster
INTRA, NIC = 25e9, 1e9  # bytes/s inside a node (PCIe by default), and of one adapter


def test_a_ring_moves_each_part_twice_around() -> None:
    assert ring_all_reduce_seconds(800, 4, 0.5, 100) == pytest.approx(6 * (0.5 + 200 / 100))
    assert ring_all_reduce_seconds(800, 1, 0.5, 100) == 0


def test_a_message_takes_its_link() -> None:
    inside = message_seconds(MB, "here/a/0/0", "here/a/0/1", CLUSTER, None)
    assert inside == pytest.approx(5e-6 + MB / INTRA)
    across = message_seconds(MB, "here/a/0/0", "here/b/0/0", CLUSTER, None)
    assert across == pytest.approx(100e-6 + MB / 0.5e9)


def test_a_measured_link_replaces_the_formula_for_its_operation() -> None:
    profile = measured_link(("here/b", "here/a"), "point_to_point")
    ends = "here/a/0/0", "here/b/0/0"
    assert message_seconds(MB, *ends, CLUSTER, profile) == pytest.approx(0.5 + 1)
    other = measured_link(("here/b", "here/a"), "all_reduce")
    assert message_seconds(MB, *ends, CLUSTER, other) < 0.01
    assert group_all_reduce_seconds(MB, ends, CLUSTER, other) == pytest.approx(1.5)


def test_a_sum_inside_a_pool_is_one_ring_of_its_slowest_reach() -> None:
    node = ["here/a/0/0", "here/a/0/1"]
    assert group_all_reduce_seconds(MB, node, CLUSTER, None) == pytest.approx(
        ring_all_reduce_seconds(MB, 2, 5e-6, INTRA)
    )
    pool = [*node, "here/a/1/0"]
    assert group_all_reduce_seconds(MB, pool, CLUSTER, None) == pytest.approx(
        ring_all_reduce_seconds(MB, 3, 10e-6, NIC)
    )
    assert group_all_reduce_seconds(MB, node[:1], CLUSTER, None) == 0


def test_one_chip_of_each_pool_is_a_plain_ring() -> None:
    chips = ["here/b/0/0", "here/c/0/0"]
    assert group_all_reduce_seconds(MB, chips, CLUSTER, None) == pytest.approx(
        ring_all_reduce_seconds(MB, 2, 10e-6, NIC)
    )


def test_two_levels_ring_inside_then_across() -> None:
    chips = ["here/a/0/0", "here/a/0/1", "here/b/0/0"]
    inside = ring_all_reduce_seconds(MB, 2, 5e-6, INTRA)
    across = ring_all_reduce_seconds(MB, 2, 100e-6, 0.5e9)
    assert group_all_reduce_seconds(MB, chips, CLUSTER, None) == pytest.approx(inside + across)


def test_groups_that_cross_at_once_share_the_link() -> None:
    chips = ["here/a/0/0", "here/b/0/0"]
    alone = group_all_reduce_seconds(MB, chips, CLUSTER, None)
    shared = group_all_reduce_seconds(MB, chips, CLUSTER, None, rings_per_crossing=4)
    assert alone == pytest.approx(ring_all_reduce_seconds(MB, 2, 100e-6, 0.5e9))
    assert shared == pytest.approx(ring_all_reduce_seconds(MB, 2, 100e-6, 0.5e9 / 4))


MODEL = make_model(blocks=2)
POOL = make_pool("a", make_chip("fast", tflops=10))


def accumulate(parameters: int) -> float:
    """Seconds to add a micro-batch's gradients to their sums: 6 bytes each at 90 GB/s."""
    return parameters * 6 / 90e9


def test_an_operator_takes_the_longer_of_arithmetic_and_memory() -> None:
    head = MODEL.layers[-1]
    expected = 0.0
    for operator in head.operators(Share(2, SEQUENCE, bytes_per_element=2)):
        expected += max(operator.flops / 10e12, operator.bytes / 100e9) + LAUNCH_SECONDS
    time = layer_time(head, POOL, 2, SEQUENCE, 1, "bf16", None)
    assert time.forward == pytest.approx(expected)
    assert time.backward == pytest.approx(2 * expected + accumulate(head.parameters))
    assert time.spread == ROOFLINE_SPREAD


def test_tensor_parallel_sums_are_paid_in_both_directions() -> None:
    pool = make_pool("a", chips_per_node=2)
    block = MODEL.layers[1]
    time = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", None)
    operators = sum(
        max(o.flops / 10e12, o.bytes / 100e9) + LAUNCH_SECONDS
        for o in block.operators(Share(1, SEQUENCE, tp=2, bytes_per_element=2))
    )
    sums = 2 * ring_all_reduce_seconds(SEQUENCE * 64 * 2, 2, 5e-6, INTRA)
    assert time.forward == pytest.approx(operators + sums)
    added = accumulate(block.parameters_per_rank(tp=2))
    assert time.backward == pytest.approx(2 * operators + sums + added)


def profile_of(signature: str, **changes: object) -> Profile:
    given = {
        "chip": "fast", "layer": signature, "micro_batch": 1, "sequence_length": SEQUENCE,
        "precision": "bf16", "forward": 3.0, "backward": 5.0, "spread": 0.01,
    }  # fmt: skip
    return Profile(cluster_digest="", layers=(LayerTime(**{**given, **changes}),))


def times(profile: Profile | None = None, recompute: str = "none") -> tuple[float, float, float]:
    time = stage_time(
        MODEL.layers, POOL, 1, SEQUENCE, tp=1, recompute=recompute, precision="bf16",
        profile=profile,
    )  # fmt: skip
    return time.forward, time.backward, time.spread


def test_a_measured_layer_replaces_the_roofline_where_it_was_measured() -> None:
    block = MODEL.layers[1]
    formula = layer_time(block, POOL, 1, SEQUENCE, 1, "bf16", None)
    forward, backward, spread = times(profile_of(block.signature))
    plain_forward, plain_backward, _ = times()
    assert forward == pytest.approx(plain_forward + 2 * (3 - formula.forward))
    assert backward == pytest.approx(plain_backward + 2 * (5 - formula.backward))
    assert 0.01 < spread < 0.011  # weighted by time: the blocks are nearly all of it
    for elsewhere in ({"chip": "slow"}, {"precision": "fp32"}):
        assert times(profile_of(block.signature, **elsewhere)) == times()


def test_a_lone_measurement_grows_to_other_shapes_as_the_formula_does() -> None:
    block = MODEL.layers[1]
    profile = profile_of(block.signature, micro_batch=2)
    time = layer_time(block, POOL, 1, SEQUENCE, 1, "bf16", profile)
    one, two = (layer_time(block, POOL, size, SEQUENCE, 1, "bf16", None) for size in (1, 2))
    assert time.forward == pytest.approx(3 * one.forward / two.forward)
    assert time.backward == pytest.approx(5 * one.backward / two.backward)
    assert time.spread > 0.01


def test_recompute_runs_the_forward_of_blocks_again() -> None:
    forward, backward, _ = times()
    again_forward, again_backward, _ = times(recompute="full")
    blocks = 2 * layer_time(MODEL.layers[1], POOL, 1, SEQUENCE, 1, "bf16", None).forward
    assert again_forward == forward
    assert again_backward == pytest.approx(backward + blocks)


def test_the_update_is_memory_traffic_unless_measured() -> None:
    assert optimizer_seconds(1000, POOL.chip, None) == pytest.approx(38_000 / 90e9)
    measured = OptimizerTime(chip="fast", seconds_per_parameter=2e-3, spread=0.0)
    profile = Profile(cluster_digest="", optimizers=(measured,))
    assert optimizer_seconds(1000, POOL.chip, profile) == 2


# Bytes. The tiny Llama by hand: h 64, 4 heads of 16, 2 KV heads, feed-forward 128, V 256.
BLOCK = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
TABLE = 256 * 64


@pytest.mark.parametrize(("precision", "bytes_per_parameter"), [("bf16", 18), ("fp32", 16)])
def test_bytes_per_parameter(precision: str, bytes_per_parameter: int) -> None:
    chip = make_chip("both", precisions=("bf16", "fp32"))
    job = make_job(precision=precision)
    setting = make_setting([make_pool("a", chip)], MODEL, job)
    pipeline = make_pipeline(("here/a/0/0", 0, 4), micro_batches=3)
    memory = stage_memory(setting, pipeline, 0)
    parameters = 2 * TABLE + 2 * BLOCK + 64
    assert stage_parameters(setting, pipeline.stages[0]) == parameters
    state = memory.weights + memory.gradients + memory.optimizer
    assert state == bytes_per_parameter * parameters
    assert memory.capacity == pytest.approx(0.95 * 16 * GIB)
    assert memory.process == 2 * GIB
    assert memory.buffers == 0
    message = SEQUENCE * 64 * (4 if precision == "fp32" else 2)
    two = make_pipeline(("here/a/0/0", 0, 2), ("here/a/0/0", 2, 4))
    assert stage_memory(setting, two, 0).buffers == 2 * message


def test_a_tied_head_away_from_the_embedding_keeps_a_copy() -> None:
    model = make_model(blocks=2, tied=True)
    setting = make_setting([make_pool("a", nodes=3)], model)
    apart = make_pipeline(("here/a/0/0", 0, 1), ("here/a/1/0", 1, 3), ("here/a/2/0", 3, 4))
    counts = [stage_parameters(setting, stage) for stage in apart.stages]
    assert counts == [TABLE, 2 * BLOCK, TABLE + 64]
    whole = make_pipeline(("here/a/0/0", 0, 4))
    assert stage_parameters(setting, whole.stages[0]) == TABLE + 2 * BLOCK + 64


def test_activations_count_every_micro_batch_in_flight() -> None:
    setting = make_setting([make_pool("a", nodes=3)], MODEL)
    pipeline = make_pipeline(
        ("here/a/0/0", 0, 1), ("here/a/1/0", 1, 3), ("here/a/2/0", 3, 4),
        micro_batches=8, micro_batch_size=2,
    )  # fmt: skip
    block = MODEL.layers[1].activation_bytes(Share(2, SEQUENCE, bytes_per_element=2))
    head = MODEL.layers[3].activation_bytes(Share(2, SEQUENCE, bytes_per_element=2))
    assert stage_memory(setting, pipeline, 1).activations == 2 * (2 * block)
    assert stage_memory(setting, pipeline, 2).activations == head
    few = replace(pipeline, micro_batches=1)
    assert stage_memory(setting, few, 1).activations == 2 * block
    gpipe = replace(pipeline, schedule="gpipe")
    assert stage_memory(setting, gpipe, 1).activations == 8 * (2 * block)


def test_recompute_keeps_inputs_and_one_block_at_work() -> None:
    setting = make_setting([make_pool("a", nodes=2)], MODEL)
    pipeline = make_pipeline(
        ("here/a/0/0", 0, 3), ("here/a/1/0", 3, 4), micro_batches=5, recompute="full"
    )
    hidden = SEQUENCE * 64 * 2
    ids = SEQUENCE * 8
    block = MODEL.layers[1].activation_bytes(Share(1, SEQUENCE, bytes_per_element=2))
    assert stage_memory(setting, pipeline, 0).activations == 2 * (ids + 2 * hidden) + block


def test_tensor_parallel_chips_share_what_they_hold() -> None:
    setting = make_setting([make_pool("a", chips_per_node=2)], MODEL)
    pipeline = make_pipeline(("here/a/0/0", 1, 3))
    (stage,) = pipeline.stages
    shared = replace(stage, chips=("here/a/0/0", "here/a/0/1"), tensor_parallel=2)
    assert stage_parameters(setting, shared) == 2 * ((BLOCK - 128) // 2 + 128)


def test_zero_divides_the_moments_over_the_replicas() -> None:
    setting = make_setting([make_pool("a", chips_per_node=2)], MODEL)
    pipeline = make_pipeline(("here/a/0/0", 0, 4))
    (stage,) = pipeline.stages
    stage = replace(stage, chips=("here/a/0/0", "here/a/0/1"), zero=1)
    whole = stage_memory(setting, pipeline, 0)
    divided = stage_memory(setting, replace(pipeline, stages=(stage,)), 0)
    assert divided.optimizer == whole.optimizer / 2
    assert divided.weights == whole.weights


def test_a_cpu_process_is_smaller() -> None:
    chip = replace(make_chip(), device="cpu")
    setting = make_setting([make_pool("a", chip)], MODEL)
    memory = stage_memory(setting, make_pipeline(("here/a/0/0", 0, 4)), 0)
    assert memory.process < 0.5 * GIB
