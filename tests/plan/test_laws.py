"""The laws of a plan hold for whatever the planner plans; and none of its rivals' bugs is ours.

Random clusters of one to four pools of unlike chips, dense models and models of experts, every
objective. The bugs are those found in published planners, each tried on our own.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.core.errors import PlanError
from pluribus.core.schema import to_table
from pluribus.hardware.link import LinkSpec
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.plan.validate import check
from pluribus.predict.predict import predict
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Plan

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def experts_model(blocks: int, hidden: int) -> Model:
    """A Mixtral of four experts with four heads."""
    return Model.from_config(
        {
            "model_type": "mixtral", "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": blocks,
            "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 512,
            "max_position_embeddings": 4096,
        }
    )  # fmt: skip


@st.composite
def random_settings(draw: st.DrawFn) -> Setting:
    rng = random.Random(draw(st.integers(0, 2**30)))
    pools = []
    for name in "abcd"[: rng.randint(1, 4)]:
        chip = make_chip(
            f"chip-{name}", tflops=rng.choice([1, 3, 10, 40]), gib=rng.choice([2.3, 3, 6, 40]),
            precisions=rng.choice([("bf16",), ("bf16", "fp32"), ("fp32",)]),
        )  # fmt: skip
        pools.append(
            make_pool(
                name, chip, nodes=rng.choice([1, 1, 2, 3]),
                chips_per_node=rng.choice([1, 2, 3, 4, 6, 8]),
                gbps=rng.choice([1, 25, 200]), price=rng.choice([0.0, 0.5, 2.0]),
            )
        )  # fmt: skip
    links = ()
    if len(pools) > 1 and rng.random() < 0.5:
        links = (LinkSpec(("here/a", "here/b"), gbps=rng.choice([1, 50]), latency_us=30),)
    blocks, hidden = rng.choice([1, 3, 6, 12]), rng.choice([128, 512, 1024])
    make = rng.choice([make_model, experts_model])
    job = make_job(
        batch=rng.choice([1, 3, 8, 20, 36]), sequence=rng.choice([128, 1024]),
        precision=rng.choice(["bf16", "fp32"]), sizes=rng.choice([(1,), (1, 2, 4), (2, 3)]),
        recompute=rng.choice(["auto", "auto", "none", "full"]),
        objective=rng.choice(["time", "time", "money", Deadline(deadline="30d")]),
    )  # fmt: skip
    return make_setting(pools, make(blocks, hidden), job, links)


@settings(max_examples=40, deadline=None)
@given(random_settings())
def test_whatever_is_planned_obeys_the_laws(setting: Setting) -> None:
    try:
        plan = Search(setting).best()
    except PlanError:
        return  # nothing fits, or nothing ends in time: test_search has the messages
    assert check(plan, setting) == []
    prediction = plan.prediction
    assert prediction is not None
    assert predict(plan) == prediction
    text = json.dumps(to_table(plan))
    assert json.dumps(to_table(Search(replace(setting)).best())) == text  # same input, same plan
    wanted = setting.job.plan.recompute
    assert all(wanted in ("auto", stage.recompute) for _, _, stage in plan.stages)
    sizes = setting.job.plan.micro_batch_sizes
    assert all(pipeline.micro_batch_size in sizes for pipeline in plan.pipelines)


def best(setting: Setting) -> Plan:
    plan = Search(setting).best()
    assert check(plan, setting) == []
    return plan


def seconds(plan: Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.step_seconds.mid


def test_metis_drops_the_last_layer_and_leaves_stages_empty() -> None:
    """4 T4-like and 4 A100-like chips, ten layers (its own example): all layers, no empty stage;
    so too with more chips than layers."""
    for nodes in (1, 4):
        pools = [
            make_pool("a", make_chip("slow", 30), nodes=nodes, chips_per_node=4),
            make_pool("b", make_chip("fast", 100), nodes=nodes, chips_per_node=4),
        ]
        model = make_model(blocks=8, hidden=512)
        plan = best(make_setting(pools, model, make_job(128, sequence=1024, sizes=(1, 2, 4))))
        for pipeline in plan.pipelines:
            assert sum(stage.num_layers for stage in pipeline.stages) == 10
            assert min(stage.num_layers for stage in pipeline.stages) >= 1


def test_metis_takes_the_bandwidth_inside_a_node_for_that_between_nodes() -> None:
    """With the same node and a network a thousand times slower, the step must become slower."""
    model, job = make_model(blocks=6, hidden=512), make_job(16, sequence=1024)
    fast, slow = (
        best(make_setting([make_pool("a", nodes=4, chips_per_node=2, gbps=g)], model, job))
        for g in (1000, 1)
    )
    assert seconds(slow) > 1.05 * seconds(fast)


def test_malleus_orders_stages_by_their_names() -> None:
    """From the tenth stage on, l_0_10 sorts before l_0_2: sixteen stages must stay in order."""
    model = make_model(blocks=14, hidden=1024)
    pools = [make_pool("a", make_chip("small", 40, gib=2.75), nodes=16, gbps=1000)]
    plan = best(make_setting(pools, model, make_job(64, sequence=1024, sizes=(1,))))
    deepest = max(plan.pipelines, key=lambda pipeline: len(pipeline.stages))
    assert len(deepest.stages) >= 10
    firsts = [stage.layers[0] for stage in deepest.stages]
    assert firsts == sorted(firsts)


def test_sailor_finds_no_cheap_plan_of_several_stages() -> None:
    """Its money objective only ever returns one stage: where none holds the model, none is found.
    Nor does it keep to a budget unless throughput is the objective."""
    pools = [
        make_pool("a", make_chip("dear", 40, gib=3), nodes=4, price=9.0),
        make_pool("b", make_chip("cheap", 20, gib=3), nodes=4, price=1.0),
    ]
    model = make_model(blocks=8, hidden=1024)

    def plan(objective: str | Deadline) -> Plan:
        job = make_job(16, sequence=512, steps=1000, sizes=(1,), objective=objective)
        return best(make_setting(pools, model, job))

    cheap, quick = plan("money"), plan("time")
    assert all(len(pipeline.stages) > 1 for pipeline in cheap.pipelines)
    assert cheap.prediction is not None
    assert quick.prediction is not None
    assert cheap.prediction.money_per_step < quick.prediction.money_per_step
    middle = (seconds(cheap) + seconds(quick)) / 2 * 1000
    between = plan(Deadline(deadline=f"{middle:.6f}s"))
    assert between.prediction is not None
    assert seconds(between) * 1000 <= middle
    assert between.prediction.money_per_step <= quick.prediction.money_per_step * (1 + 1e-9)


def test_sailor_splits_layers_evenly_and_leaves_the_weaker_kinds_out() -> None:
    """Three kinds of chip: all three work, and the fast ones hold more layers or more batches."""
    pools = [
        make_pool(name, make_chip(f"chip-{name}", rate), nodes=2, chips_per_node=2, gbps=400)
        for name, rate in (("a", 100), ("b", 50), ("c", 50))
    ]
    model = make_model(blocks=16, hidden=1024)
    plan = best(make_setting(pools, model, make_job(64, sequence=1024)))
    work: dict[str, float] = {}
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            done = stage.num_layers * pipeline.sequences
            work[stage.pool] = work.get(stage.pool, 0) + done
    assert set(work) == {"here/a", "here/b", "here/c"}
    assert work["here/a"] == max(work.values())


def test_flagscale_starts_degrees_that_nothing_divides_by() -> None:
    """Nodes of six and three chips, four heads, an odd vocabulary and batch: tp 3 and 6 are out."""
    pools = [
        make_pool("a", make_chip("six", 20), chips_per_node=6),
        make_pool("b", make_chip("three", 40), chips_per_node=3),
    ]
    plan = best(make_setting(pools, make_model(blocks=5, vocab=1001), make_job(7, sizes=(1, 2))))
    assert {stage.tensor_parallel for _, _, stage in plan.stages} <= {1, 2}
    assert plan.global_batch == 7


def test_flagscale_mixes_no_unlike_pipelines_of_experts() -> None:
    """Two pools, one far slower behind a thin link: each its own pipelines, all experts once."""
    pools = [
        make_pool("a", make_chip("fast", 50), nodes=2, chips_per_node=4, gbps=100),
        make_pool("b", make_chip("slow", 20), nodes=2, chips_per_node=4, gbps=100),
    ]
    link = LinkSpec(("here/a", "here/b"), gbps=10, latency_us=50)
    setting = make_setting(pools, experts_model(4, 512), make_job(32, sequence=512), [link])
    plan = best(setting)
    assert {stage.pool for _, _, stage in plan.stages} == {"here/a", "here/b"}


def test_alphabetical_order_of_pools_decides_nothing() -> None:
    """Pools named the other way round give the mirrored plan, as quick."""

    def step(first: str, second: str) -> float:
        pools = [
            make_pool(first, make_chip("fast", 40), nodes=2, chips_per_node=2),
            make_pool(second, make_chip("slow", 10), nodes=2, chips_per_node=2),
        ]
        return seconds(best(make_setting(pools, make_model(blocks=6, hidden=512))))

    assert step("a", "b") == pytest.approx(step("z", "b"), rel=0.01)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    setting = make_setting(
        [make_pool("a", nodes=2, chips_per_node=2), make_pool("b", make_chip("slow", 3))],
        experts_model(3, 256),
    )
    plan = best(setting)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert check(again, Setting.of_plan(again)) == []
