from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest

from pluribus.core.errors import PlanError
from pluribus.hardware.link import LinkSpec
from pluribus.model.share import Share
from pluribus.predict.predict import _durations, _heads, _sums, forecast, predict
from pluribus.predict.price import stage_price
from pluribus.predict.schedule import ActionKind, gradient_groups, plan_actions
from pluribus.predict.setting import Setting
from pluribus.predict.timeline import Timeline, simulate
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.profile import LayerTime, OptimizerTime, Profile

from ..small import (
    SEQUENCE,
    make_chip,
    make_job,
    make_model,
    make_pipeline,
    make_plan,
    make_pool,
    make_setting,
)

MODEL = make_model(blocks=4, tied=True)
POOLS = (
    make_pool("a", make_chip("fast", 10), nodes=2, chips_per_node=3, gbps=1, price=2),
    make_pool("b", make_chip("slow", 1), nodes=1, chips_per_node=2, gbps=1, price=0.5),
)
LINKS = (LinkSpec(between=("here/a", "here/b"), gbps=0.5, latency_us=20),)
SETTING = make_setting(POOLS, MODEL, make_job(batch=22), LINKS)


def unlike_plan() -> Plan:
    """Three like pipelines on the fast chips, of which one reaches into the other node, and one
    over both slow chips."""
    return make_plan(
        SETTING,
        make_pipeline(("here/a/0/0", 0, 3), ("here/a/0/1", 3, 6), micro_batches=6),
        make_pipeline(("here/a/0/2", 0, 3), ("here/a/1/0", 3, 6), micro_batches=6),
        make_pipeline(("here/a/1/1", 0, 3), ("here/a/1/2", 3, 6), micro_batches=6),
        make_pipeline(("here/b/0/0", 0, 4), ("here/b/0/1", 4, 6), micro_batches=4),
    )


def test_the_parts_of_the_step_sum_to_it() -> None:
    plans = (
        unlike_plan(),
        make_plan(
            SETTING,
            make_pipeline(("here/a/0/0", 0, 2), ("here/b/0/0", 2, 4), ("here/a/1/0", 4, 6),
                          micro_batches=22),
        ),
        make_plan(SETTING, make_pipeline(("here/b/0/0", 0, 6), micro_batches=22)),
    )  # fmt: skip
    for plan in plans:
        prediction = forecast(plan, SETTING, {}).prediction
        parts = astuple(prediction.breakdown)
        assert sum(parts) == pytest.approx(prediction.step_seconds.mid, abs=1e-9)
        assert min(parts) >= 0


def test_waiting_counts_as_messages_up_to_what_each_of_them_takes() -> None:
    """The slow stage in the middle hears from a near and from a far neighbour."""
    plan = make_plan(
        SETTING,
        make_pipeline(("here/a/0/0", 0, 1), ("here/a/0/1", 1, 5), ("here/b/0/0", 5, 6),
                      micro_batches=1),
    )  # fmt: skip
    result = forecast(plan, SETTING, {})
    near = SETTING.cluster.link("here/a/0/0", "here/a/0/1").seconds(SEQUENCE * 64 * 2)
    far = SETTING.cluster.link("here/a/0/1", "here/b/0/0").seconds(SEQUENCE * 64 * 2)
    busiest = max(
        ((0, s) for s in range(3)),
        key=lambda lane: result.timeline.seconds(lane, ActionKind.FORWARD, ActionKind.BACKWARD),
    )
    assert busiest == (0, 1)
    # One micro-batch: nothing hides either message.
    assert result.prediction.breakdown.pipeline_communication == pytest.approx(near + far)


def test_like_pipelines_are_timed_once_and_all_the_same() -> None:
    """The shortcut gives the spans of a simulation of all stages, wherever their chips sit."""
    plan = unlike_plan()
    groups = gradient_groups(plan, SETTING.tied_layers)
    actions = {
        (p, s): program
        for p, stages in enumerate(plan_actions(plan, groups))
        for s, program in enumerate(stages)
    }
    prices = {(p, s): stage_price(SETTING, plan.pipelines[p], s) for p, s, _ in plan.stages}
    durations = _durations(plan, SETTING, prices)
    starts = {lane: head.end for lane, head in _heads(plan, durations, overlaps=False).items()}
    sums = _sums(plan, SETTING, groups, prices, starts)
    whole = simulate(actions, replace(durations, reduce=sums), groups)
    quick = forecast(plan, SETTING, {}).timeline
    assert quick.lanes.keys() == whole.lanes.keys()
    for lane, spans in whole.lanes.items():
        assert [s.action for s in quick.lanes[lane]] == [s.action for s in spans]
        assert [s.end for s in quick.lanes[lane]] == pytest.approx([s.end for s in spans])
    backward = ActionKind.BACKWARD
    ends = [max(s.end for s in quick.lanes[p, 0] if s.action.kind is backward) for p in range(3)]
    assert ends[0] == ends[2]
    assert ends[1] > ends[0]  # its messages leave the node


def test_one_chip_by_hand() -> None:
    """One chip, measured layers: forward and backward of each micro-batch, then the update."""
    layers = tuple(
        LayerTime(
            chip="fast", layer=signature, micro_batch=2, sequence_length=SEQUENCE,
            precision="bf16", forward=1.0, backward=2.0, spread=0.03,
        )
        for signature in {layer.signature for layer in MODEL.layers}
    )  # fmt: skip
    update = OptimizerTime(chip="fast", seconds_per_parameter=1e-3, spread=0.0)
    profile = Profile(cluster_digest="", layers=layers, optimizers=(update,))
    pipeline = make_pipeline(("here/a/0/0", 0, 6), micro_batches=11, micro_batch_size=2)
    prediction = predict(make_plan(SETTING, pipeline), profile)
    seconds = 11 * 6 * 3 + MODEL.num_parameters * 1e-3
    assert prediction.step_seconds.mid == pytest.approx(seconds)
    assert prediction.step_seconds.low == pytest.approx(seconds / 1.03)
    assert prediction.step_seconds.high == pytest.approx(seconds * 1.03)
    assert prediction.tokens_per_s == pytest.approx(22 * SEQUENCE / seconds)
    assert prediction.money_per_step == pytest.approx(2 * seconds / 3600)
    assert prediction.breakdown.compute == pytest.approx(198)
    assert prediction.stages[0][0].busy == pytest.approx(198 / seconds)
    flops = 3 * sum(layer.forward_flops(Share(1, SEQUENCE)) for layer in MODEL.layers) * 22
    assert prediction.mfu == pytest.approx(flops / seconds / 10e12)


def test_money_and_peak_count_every_chip_of_the_plan() -> None:
    plan = unlike_plan()
    prediction = forecast(plan, SETTING, {}).prediction
    step = prediction.step_seconds.mid
    assert prediction.money_per_step == pytest.approx((6 * 2 + 2 * 0.5) * step / 3600)
    flops = 3 * MODEL.forward_flops_per_token(SEQUENCE) * 22 * SEQUENCE
    assert prediction.mfu == pytest.approx(flops / step / 62e12)


def test_no_chip_computes_more_than_the_bound() -> None:
    """One chip that never waits reaches it but for the update; recompute falls short of it."""
    pipeline = make_pipeline(("here/a/0/0", 0, 6), micro_batches=22)
    plan = make_plan(SETTING, pipeline)
    prediction = forecast(plan, SETTING, {}).prediction
    step, parts = prediction.step_seconds.mid, prediction.breakdown
    assert prediction.of_bound == pytest.approx(1 - parts.optimizer / step)
    again = make_plan(SETTING, make_pipeline(("here/a/0/0", 0, 6), micro_batches=22,
                                             recompute="full"))  # fmt: skip
    assert forecast(again, SETTING, {}).prediction.of_bound < prediction.of_bound
    mixed = forecast(unlike_plan(), SETTING, {}).prediction
    assert mixed.aggregation is None
    assert 0 < mixed.of_bound < 1
    six = mixed.bound_tokens_per_s - 6 * prediction.bound_tokens_per_s
    assert six > 0  # the two slow chips add to the six fast ones


def test_no_peak_no_mfu(tmp_path: Path) -> None:
    """And such a plan comes back from its file."""
    chip = replace(make_chip(), peak_tflops={})
    setting = make_setting([make_pool("a", chip)], MODEL, make_job(batch=4))
    plan = make_plan(setting, make_pipeline(("here/a/0/0", 0, 6)))
    prediction = predict(plan)
    assert prediction.mfu is None
    assert prediction.aggregation is None
    plan = replace(plan, prediction=prediction)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_aggregation_is_against_the_sum_of_the_pools_alone() -> None:
    plan = unlike_plan()
    first = forecast(plan, SETTING, {"here/a": 100.0, "here/b": 50.0}).prediction
    assert first.aggregation == pytest.approx(first.tokens_per_s / 150)
    # A plan keeps what its prediction says of the pools alone.
    again = predict(replace(plan, prediction=first))
    assert again == first
    assert forecast(plan, SETTING, {"here/a": 0.0}).prediction.aggregation is None


def test_a_prediction_is_the_same_every_time() -> None:
    fresh = make_setting(POOLS, MODEL, make_job(batch=22), LINKS)
    assert forecast(unlike_plan(), fresh, {}) == forecast(unlike_plan(), SETTING, {})
    assert predict(unlike_plan()) == forecast(unlike_plan(), SETTING, {}).prediction


@pytest.mark.parametrize("part", ["job", "cluster"])
def test_a_plan_edited_by_hand_is_refused(part: str) -> None:
    plan = unlike_plan()
    if part == "job":
        train = {**plan.job["train"], "seed": 7}
        edited = replace(plan, job={**plan.job, "train": train})
    else:
        pools = [{**plan.cluster["pool"][0], "nodes": 9}, plan.cluster["pool"][1]]
        edited = replace(plan, cluster={**plan.cluster, "pool": pools})
    with pytest.raises(PlanError, match=f"the plan's {part} was changed after planning"):
        Setting.of_plan(edited)


def test_the_memory_of_every_stage_is_told() -> None:
    plan = unlike_plan()
    stages = forecast(plan, SETTING, {}).prediction.stages
    assert [len(row) for row in stages] == [2, 2, 2, 2]
    assert stages[0] == stages[2]
    assert stages[3][0].memory.weights > stages[0][0].memory.weights


def in_schedule(name: str, micro_batches: int = 8) -> Plan:
    """The four blocks over the slow chips, in two stages of one or two chunks."""
    chunks = {"interleaved": ((0, 2), (3, 4)), "zbv": ((0, 2), (4, 6))}.get(name, ())
    other = {"interleaved": ((2, 3), (4, 6)), "zbv": ((2, 3), (3, 4))}.get(name, ())
    return make_plan(
        SETTING,
        Pipeline(
            stages=(
                Stage(chips=("here/b/0/0",), layers=(0, 2 if chunks else 3), chunks=chunks),
                Stage(
                    chips=("here/b/0/1",), layers=other[0] if other else (3, 6), chunks=other
                ),
            ),
            micro_batch_size=1,
            micro_batches=micro_batches,
            schedule=name,
            virtual_stages=2 if chunks else 1,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["interleaved", "zb-h1", "zb-h2", "zbv"])
def test_every_schedule_does_the_same_work(name: str) -> None:
    """Only who waits differs; the breakdown still sums to the step."""
    plain = forecast(in_schedule("1f1b"), SETTING, {}).prediction
    other = forecast(in_schedule(name), SETTING, {})
    parts = astuple(other.prediction.breakdown)
    assert sum(parts) == pytest.approx(other.prediction.step_seconds.mid, abs=1e-9)
    assert min(parts) >= -1e-12
    kinds = [k for k in ActionKind if k.value.startswith(("forward", "backward"))]

    def work(timeline: Timeline, *kinds: ActionKind) -> float:
        return sum(timeline.seconds((0, s), *kinds) for s in (0, 1))

    first = forecast(in_schedule("1f1b"), SETTING, {}).timeline
    assert work(other.timeline, *kinds) == pytest.approx(work(first, *kinds))
    if name != "zbv":  # embedding and head apart, as in 1F1B: as many copies of their matrix
        step = ActionKind.STEP
        assert work(other.timeline, step) == pytest.approx(work(first, step))
    assert other.prediction.breakdown.bubble <= plain.breakdown.bubble


def test_the_weight_gradients_are_half_of_what_matrix_products_cost_backward() -> None:
    """And nothing of what attention and the norms cost."""
    stage = in_schedule("zb-h1").pipelines[0].stages[1]
    time = SETTING.stage_time(stage, 1)
    assert 0.2 * time.backward < time.weight_gradient < 0.5 * time.backward
    layers = tuple(
        LayerTime(
            chip="slow", layer=layer.signature, micro_batch=1, sequence_length=SEQUENCE,
            precision="bf16", forward=1.0, backward=3.0, spread=0.0,
        )
        for layer in {layer.signature: layer for layer in MODEL.layers}.values()
    )  # fmt: skip
    measured = replace(SETTING, profile=Profile(cluster_digest="", layers=layers))
    block, head = (replace(stage, layers=layers) for layers in ((3, 4), (5, 6)))
    attention = next(
        o for o in MODEL.layers[3].operators(Share(1, SEQUENCE)) if o.kind == "attention"
    ).flops  # fmt: skip
    share = 1 - attention / MODEL.layers[3].forward_flops(Share(1, SEQUENCE))
    assert measured.stage_time(block, 1).weight_gradient == pytest.approx(1.5 * share)
    assert measured.stage_time(head, 1).weight_gradient == pytest.approx(1.5)


def test_interleaved_pipelines_that_wrap_over_another_link_are_timed_apart() -> None:
    """From the last stage back to the first: inside a node in one, between nodes in the other."""
    pool = make_pool("a", make_chip("fast", 10), nodes=3, chips_per_node=2, gbps=1)
    setting = make_setting([pool], MODEL, make_job(batch=12))
    chunks = (((0, 1), (3, 4)), ((1, 2), (4, 5)), ((2, 3), (5, 6)))
    plan = make_plan(
        setting,
        *(
            Pipeline(
                stages=tuple(
                    Stage(chips=(f"here/a/{chip}",), layers=c[0], chunks=c)
                    for chip, c in zip(chips, chunks, strict=True)
                ),
                micro_batch_size=1, micro_batches=6, schedule="interleaved", virtual_stages=2,
            )
            for chips in (("0/0", "1/0", "0/1"), ("1/1", "2/0", "0/0"))
        ),
    )  # fmt: skip
    timeline = forecast(plan, setting, {}).timeline
    wraps = [
        next(s.end for s in timeline.lanes[p, 0] if s.action.kind is ActionKind.RECV_ACTIVATION)
        for p in (0, 1)
    ]
    assert wraps[0] < wraps[1]
