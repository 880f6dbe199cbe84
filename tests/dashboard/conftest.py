"""Two reports: two CPU chips with one pipeline (measured), and 224 accelerators (plan only)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pluribus.core.io import digest
from pluribus.core.units import GIB
from pluribus.dashboard.report import ReportData
from pluribus.predict.schedule import ActionKind, gradient_groups, plan_actions
from pluribus.predict.timeline import Durations, Lane, Timeline, simulate
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.prediction import (
    Alternative,
    Breakdown,
    ChipMemory,
    Interval,
    Prediction,
    StagePrediction,
)
from pluribus.spec.run import ActionTime, Comparison, Measurement, StepEvent, StepTimeline

COMPUTE = (ActionKind.FORWARD, ActionKind.BACKWARD)


def make_plan(pipelines: tuple[Pipeline, ...], pools: list[dict], sequence_length: int) -> Plan:
    sequences = sum(pipeline.sequences for pipeline in pipelines)
    job = {
        "model": {"config": "config.json"},
        "data": {"tokens": "*.bin"},
        "train": {
            "sequence_length": sequence_length,
            "global_batch_tokens": sequences * sequence_length,
            "steps": 200,
        },
    }
    cluster = {"pool": pools}
    return Plan(
        pipelines=pipelines,
        job=job,
        job_digest=digest(job),
        cluster=cluster,
        cluster_digest=digest(cluster),
        model_config={"model_type": "llama"},
    )


def pool(address: str, name: str, nodes: int, chips: int, gib: float) -> dict:
    chip = {
        "key": name.lower(), "vendor": "own", "name": name, "device": "cpu", "memory_gib": gib,
        "memory_gbytes_per_s": 100.0, "peak_tflops": {"bf16": 1.0}, "source": "a test",
    }  # fmt: skip
    return {
        "address": address, "chip": chip, "nodes": nodes, "chips_per_node": chips,
        "nic_gbps": 100.0,
    }  # fmt: skip


def make_timeline(plan: Plan, layer_seconds: dict[str, float], sync: float) -> Timeline:
    """Times the plan's own actions; a layer's backward takes twice its forward."""
    compute: dict[tuple[Lane, ActionKind], float] = {}
    for p, s, stage in plan.stages:
        batch = plan.pipelines[p].micro_batch_size / stage.data_parallel
        forward = stage.num_layers * layer_seconds[stage.pool] * batch
        compute[(p, s), ActionKind.FORWARD] = forward
        compute[(p, s), ActionKind.BACKWARD] = 2 * forward
        compute[(p, s), ActionKind.STEP] = sync / 2
    groups = gradient_groups(plan)
    actions = {
        (p, s): row
        for p, pipeline in enumerate(plan_actions(plan, groups))
        for s, row in enumerate(pipeline)
    }
    message = 0.1 * min(compute[lane, ActionKind.FORWARD] for lane in actions)
    durations = Durations(compute, lambda *_: message, [sync] * len(groups))
    return simulate(actions, durations, groups)


def make_prediction(
    plan: Plan, timeline: Timeline, sequence_length: int, capacity: dict[str, float]
) -> Prediction:
    step = timeline.end
    stages = []
    for p, pipeline in enumerate(plan.pipelines):
        row = []
        for s, stage in enumerate(pipeline.stages):
            busy = timeline.seconds((p, s), *COMPUTE) / step
            forward = timeline.seconds((p, s), ActionKind.FORWARD) / pipeline.micro_batches
            room, share = capacity[stage.pool], 0.55 + 0.03 * (len(pipeline.stages) - s) % 0.4
            memory = ChipMemory(
                weights=room * share * 0.12, gradients=room * share * 0.12,
                optimizer=room * share * 0.36, activations=room * share * 0.33,
                buffers=room * share * 0.07, capacity=room,
            )  # fmt: skip
            row.append(
                StagePrediction(forward=forward, backward=2 * forward, busy=busy, memory=memory)
            )
        stages.append(tuple(row))
    busiest = max(timeline.lanes, key=lambda lane: timeline.seconds(lane, *COMPUTE))
    compute = timeline.seconds(busiest, *COMPUTE)
    sync = timeline.seconds(busiest, ActionKind.REDUCE)
    optimizer = timeline.seconds(busiest, ActionKind.STEP)
    waits = step - compute - sync - optimizer
    return Prediction(
        step_seconds=Interval(mid=step, low=step * 0.94, high=step * 1.07),
        breakdown=Breakdown(
            compute=compute, pipeline_communication=waits * 0.2, bubble=waits * 0.8,
            gradient_sync=sync, optimizer=optimizer,
        ),
        stages=tuple(stages),
        tokens_per_s=plan.global_batch * sequence_length / step,
        mfu=0.412,
        aggregation=0.968,
        alone_tokens_per_s={stage.pool: 1.0 for _, _, stage in plan.stages},
        money_per_step=0.0,
    )  # fmt: skip


def jitter(index: int) -> float:
    """A repeatable number in [0, 1) that looks like noise."""
    return (math.sin(index * 12.9898) * 43758.5453) % 1


def make_measured(plan: Plan, timeline: Timeline) -> StepTimeline:
    """The predicted step as if it had run a little slower and less evenly."""
    actions = []
    rank = 0
    for p, s, stage in plan.stages:
        for _ in stage.chips:
            for i, span in enumerate(timeline.lanes[p, s]):
                start = span.start * 1.03
                end = start + span.seconds * (0.96 + 0.07 * jitter(i + 31 * rank))
                kind, index = span.action.kind, span.action.index
                actions.append(
                    ActionTime(
                        rank=rank, action=kind.value, micro_batch=index, start=start, end=end
                    )
                )
            rank += 1
    return StepTimeline(step=12, actions=tuple(actions))


def make_steps(count: int, tokens: int, seconds: float) -> tuple[StepEvent, ...]:
    return tuple(
        StepEvent(
            step=i,
            loss=2.1 + 6.2 * math.exp(-i / 45) + 0.16 * (jitter(i) - 0.5),
            seconds=seconds * (1 + 0.06 * jitter(i + 5) + (1.5 if i == 1 else 0)),
            tokens=tokens,
            gradient_norm=1.0,
            learning_rate=3e-4,
        )
        for i in range(1, count + 1)
    )


def make_demo() -> ReportData:
    pools = [
        pool("here/amx", "Xeon cores with AMX", 1, 1, 6.0),
        pool("here/avx2", "Xeon cores, AVX2 only", 1, 1, 6.0),
    ]
    stages = (
        Stage(chips=("here/amx/0/0",), layers=(0, 7)),
        Stage(chips=("here/avx2/0/0",), layers=(7, 10), recompute="full"),
    )
    pipelines = (Pipeline(stages=stages, micro_batch_size=2, micro_batches=8),)
    plan = make_plan(pipelines, pools, 256)
    timeline = make_timeline(plan, {"here/amx": 0.00125, "here/avx2": 0.0026}, 0.008)
    prediction = make_prediction(plan, timeline, 256, {"here/amx": 6.0 * GIB, "here/avx2": 2 * GIB})
    end = timeline.end
    alternatives = (
        ("1 pipeline, 7 + 3 layers", 1.0, 0.968, True, ""),
        ("2 unlike pipelines, 11 + 5 micro-batches", 1.06, 0.913, False, "sums more gradients"),
        ("1 pipeline, 5 + 5 layers (even split)", 1.61, 0.602, False, "waits for here/avx2"),
        ("here/amx alone", 1.49, 0.65, False, "leaves a chip idle"),
    )
    plan = replace(
        plan,
        prediction=prediction,
        alternatives=tuple(
            Alternative(
                name=name, step_seconds=end * times, memory_share=0.74 + 0.13 * i,
                aggregation=aggregation, money_per_step=0.0, chosen=chosen, note=note,
            )
            for i, (name, times, aggregation, chosen, note) in enumerate(alternatives)
        ),
        explanation=(
            "here/amx computes a layer 2.1 × as fast as here/avx2, so it takes 7 of 10 layers.",
            "The optimum over all splits of these chips is proven; the gap is 0 %.",
        ),
    )  # fmt: skip
    tokens = 16 * 256
    rows = (
        ("here/amx", "alone", 1.49, 1.52), ("here/avx2", "alone", 3.02, 2.95),
        ("even split", "even", 1.61, 1.66), ("our plan", "plan", 1.0, 1.04),
    )  # fmt: skip
    comparison = Comparison(
        rows=tuple(
            Measurement(
                name=name, role=role, predicted_seconds=end * predicted,
                measured_seconds=end * measured, spread=0.012, tokens=tokens, steps=20,
            )
            for name, role, predicted, measured in rows
        )
    )  # fmt: skip
    return ReportData(
        title="Two unlike halves of one processor",
        plan=plan,
        layer_kinds=("embedding", *["dense"] * 8, "head"),
        model_name="llama-tiny",
        num_parameters=14_200_000,
        predicted=timeline,
        measured=make_measured(plan, timeline),
        steps=make_steps(200, tokens, end * 1.01),
        comparison=comparison,
        facts=(("Run", "200 steps in 21.4 s"),),
    )


def make_large(*, alike: bool = True) -> ReportData:
    """16 pipelines of 14 stages; unless `alike`, each with its own split of the layers."""
    pools = [
        pool("wuhan/a800", "A800 80GB", 16, 8, 80.0),
        pool("wuhan/910b", "Ascend 910B", 14, 8, 64.0),
    ]
    kinds = ("embedding", *["dense"] * 3, *["moe"] * 58, "head")
    pipelines = []
    for p in range(16):
        pool_of = [("wuhan/a800", 8)] * 8 + [("wuhan/910b", 8)] * 6
        if p >= 8:
            pool_of = [("wuhan/910b", 8)] * 6 + [("wuhan/a800", 8)] * 8
        sizes = [5 if pool == "wuhan/a800" else 4 for pool, _ in pool_of]
        sizes[0] -= 1 if p < 8 else 0
        sizes[-1] -= sum(sizes) - len(kinds)
        if not alike:
            sizes[p % 5] += 1
            sizes[p % 5 + 6] -= 1
        stages, first = [], 0
        used = {"wuhan/a800": 8 * p, "wuhan/910b": 6 * p}
        for (address, per_node), size in zip(pool_of, sizes, strict=True):
            node, chip = divmod(used[address], per_node)
            used[address] += 1
            stages.append(Stage(chips=(f"{address}/{node}/{chip}",), layers=(first, first + size)))
            first += size
        size = 28 if p < 8 else 36
        pipelines.append(Pipeline(stages=tuple(stages), micro_batch_size=1, micro_batches=size))
    plan = make_plan(tuple(pipelines), pools, 4096)
    timeline = make_timeline(plan, {"wuhan/a800": 0.0105, "wuhan/910b": 0.0131}, 0.4)
    capacity = {"wuhan/a800": 80 * GIB, "wuhan/910b": 64 * GIB}
    prediction = make_prediction(plan, timeline, 4096, capacity)
    plan = replace(plan, prediction=replace(prediction, money_per_step=3.2112))
    return ReportData(
        title="224 chips of two vendors",
        plan=plan,
        layer_kinds=kinds,
        model_name="deepseek-v3-proxy",
        num_parameters=67_100_000_000,
        predicted=timeline,
        measured=None,
        steps=(),
        comparison=None,
    )


@pytest.fixture(scope="session")
def demo() -> ReportData:
    return make_demo()


@pytest.fixture(scope="session")
def large() -> ReportData:
    return make_large()


@pytest.fixture(scope="session")
def unlike() -> ReportData:
    """224 chips, no two pipelines alike, and measured too."""
    data = make_large(alike=False)
    assert data.predicted is not None
    return replace(data, measured=make_measured(data.plan, data.predicted))
