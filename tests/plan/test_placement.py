"""Placement: what shares a node, what shares a rail, and how near it comes to the best there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.core.errors import PlanError
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.plan.layout import fragments_of, layouts, on_nodes
from pluribus.plan.placement import place, unplaced
from pluribus.plan.placement_cost import Traffic, neighbours
from pluribus.plan.validate import check
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Stage

from ..small import make_chip, make_job, make_model, make_plan, make_pool, make_setting


def demand(*stages: tuple[str, int, int, int], micro_batches: int = 4, **shared: int) -> Pipeline:
    """A pipeline of (pool, tensor parallel, first layer, end) without addresses."""
    dp, cp = shared.get("dp", 1), shared.get("cp", 1)
    return Pipeline(
        stages=tuple(
            Stage(
                chips=unplaced(f"here/{pool}", tp * dp * cp), layers=(first, end),
                tensor_parallel=tp, context_parallel=cp,
            )
            for pool, tp, first, end in stages
        ),
        micro_batch_size=1,
        micro_batches=micro_batches,
    )  # fmt: skip


def node(stage: Stage, group: int = 0) -> str:
    return stage.chips[group * stage.tensor_parallel].rpartition("/")[0]


def seconds(pipelines: Sequence[Pipeline], setting: Setting) -> float:
    plan = make_plan(setting, *pipelines)
    return forecast(plan, setting, {}).prediction.step_seconds.mid


@st.composite
def demands(draw: st.DrawFn) -> tuple[Setting, list[Pipeline]]:
    """Pipelines of one or two shapes that fit one or two small pools by their chips."""
    rng = random.Random(draw(st.integers(0, 2**20)))
    pools = [
        make_pool(
            name, make_chip(f"chip-{name}", tflops=rng.choice([5, 50, 300])),
            nodes=rng.choice([2, 3, 5]), chips_per_node=rng.choice([2, 3, 4, 6, 8]),
            gbps=rng.choice([1, 10, 100]),
        )
        for name in "ab"[: rng.choice([1, 2])]
    ]  # fmt: skip
    shapes = []
    for _ in range(rng.choice([1, 1, 2])):
        depth = rng.randint(1, 4)
        ends = [0, *sorted(rng.sample(range(1, 8), depth - 1)), 8]
        stages = []
        for first, end in itertools.pairwise(ends):
            pool = rng.choice(pools)
            tp = rng.choice([t for t in (1, 2) if pool.chips_per_node % t == 0])
            stages.append((pool.address.partition("/")[2], tp, first, end))
        shapes.append(demand(*stages))
    free = {pool.address: pool.num_chips for pool in pools}
    pipelines = []
    for i in range(12):
        shape = shapes[i % len(shapes)]
        for stage in shape.stages:
            free[stage.pool] -= len(stage.chips)
        if min(free.values()) < 0:
            break
        pipelines.append(shape)
    model = make_model(blocks=6, hidden=rng.choice([64, 256, 512]))
    job = make_job(4 * max(1, len(pipelines)), sequence=rng.choice([128, 1024]), sizes=(1,))
    return make_setting(pools, model, job), pipelines


@settings(max_examples=60, deadline=None)
@given(demands())
def test_every_placement_is_a_valid_plan(case: tuple[Setting, list[Pipeline]]) -> None:
    setting, pipelines = case
    if not pipelines:
        return
    placed = place(pipelines, setting)
    assert check(make_plan(setting, *placed), setting) == []
    for before, after in zip(pipelines, placed, strict=True):
        stages = [
            replace(b, chips=a.chips) for b, a in zip(before.stages, after.stages, strict=True)
        ]
        assert replace(before, stages=tuple(stages)) == after  # nothing else has changed
    assert place(placed, setting) == placed  # where the chips were is of no account


def every_arrangement(sizes: Sequence[int], pool: Pool) -> Iterator[np.ndarray]:
    """Every way to put fragments into like nodes, empty nodes taken in order."""

    def rest(index: int, free: list[int], chosen: list[int]) -> Iterator[np.ndarray]:
        if index == len(sizes):
            yield np.array(chosen)
            return
        for n, room in enumerate(free):
            if room >= sizes[index]:
                left = [*free]
                left[n] -= sizes[index]
                yield from rest(index + 1, left, [*chosen, n])
            if room == pool.chips_per_node:
                break

    yield from rest(0, [pool.chips_per_node] * pool.nodes, [])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_near_the_best_of_all_arrangements(seed: int) -> None:
    """Against every arrangement of up to seven fragments in two or three nodes."""
    rng = random.Random(seed)
    pool = make_pool(
        "a", make_chip(tflops=rng.choice([5, 50, 300])), nodes=rng.choice([2, 3]),
        chips_per_node=rng.choice([2, 3, 4]), gbps=rng.choice([1, 10, 100]),
    )  # fmt: skip
    depth = rng.randint(1, 4)
    ends = [0, *sorted(rng.sample(range(1, 8), depth - 1)), 8]
    degrees = [t for t in (1, 2) if pool.chips_per_node % t == 0]
    stages = [("a", rng.choice(degrees), *run) for run in itertools.pairwise(ends)]
    shape = demand(*stages, micro_batches=rng.choice([4, 8]))
    count = min(7 // depth, pool.num_chips // shape.num_chips)
    if not count:
        return
    model = make_model(blocks=6, hidden=rng.choice([64, 256, 512]))
    setting = make_setting([pool], model, make_job(64, sequence=rng.choice([128, 1024])))
    pipelines = [shape] * count
    traffic, fragments = Traffic(setting, pipelines), fragments_of(pipelines, pool)

    def cost(nodes: np.ndarray) -> float:
        layout = on_nodes(fragments, nodes)
        near = neighbours(fragments, layout, np.zeros((count, depth), dtype=bool))
        slowest = max(traffic.pipeline_seconds(p, rows, near) for p, rows in traffic.columns)
        return slowest + traffic.gradient_seconds(fragments, layout)

    placed = place(pipelines, setting)
    mine = [
        int(placed[p].stages[s].chips[0].split("/")[2])
        for p, s in zip(fragments.pipeline.tolist(), fragments.stage.tolist(), strict=True)
    ]
    best = min(map(cost, every_arrangement(fragments.size.tolist(), pool)))
    assert cost(np.array(mine)) <= best * 1.02


def test_peers_share_a_node_when_gradients_weigh_more_than_messages() -> None:
    """Eight pipelines of four stages on four nodes of eight: each node holds one stage of all."""
    pool = make_pool("a", nodes=4, chips_per_node=8, gbps=10)
    setting = make_setting([pool], make_model(blocks=6, hidden=512), make_job(32))
    shape = demand(("a", 1, 0, 2), ("a", 1, 2, 4), ("a", 1, 4, 6), ("a", 1, 6, 8))
    placed = place([shape] * 8, setting)
    for s in range(4):
        assert len({node(pipeline.stages[s]) for pipeline in placed}) == 1
    by_address = [
        replace(shape, stages=tuple(
            replace(stage, chips=(f"here/a/{p // 2}/{p % 2 * 4 + s}",))
            for s, stage in enumerate(shape.stages)
        ))
        for p in range(8)
    ]  # fmt: skip
    assert seconds(placed, setting) < seconds(by_address, setting)


def test_neighbours_share_a_node_when_messages_weigh_more() -> None:
    """Long sequences, few parameters, many micro-batches, a slow network."""
    pool = make_pool("a", make_chip(tflops=1000), nodes=4, chips_per_node=4, gbps=1)
    job = make_job(256, sequence=2048)
    setting = make_setting([pool], make_model(blocks=6, hidden=64), job)
    shape = demand(("a", 1, 0, 2), ("a", 1, 2, 4), ("a", 1, 4, 6), ("a", 1, 6, 8),
                   micro_batches=64)  # fmt: skip
    placed = place([shape] * 4, setting)
    for pipeline in placed:
        assert len({node(stage) for stage in pipeline.stages}) == 1


def test_peers_in_several_nodes_are_on_the_same_rails() -> None:
    pool = replace(make_pool("a", nodes=8, chips_per_node=8), rails=8)
    setting = make_setting([pool], make_model(blocks=6, hidden=512), make_job(64))
    shape = demand(("a", 2, 0, 3), ("a", 2, 3, 6), ("a", 2, 6, 7), ("a", 2, 7, 8))
    placed = place([shape] * 8, setting)
    for s in range(4):
        rails: dict[str, set[str]] = {}
        for pipeline in placed:
            for chip in pipeline.stages[s].chips:
                where, _, rail = chip.rpartition("/")
                rails.setdefault(where, set()).add(rail)
        assert len(set(map(frozenset, rails.values()))) == 1


def test_replicas_and_sequences_of_a_stage_stay_in_a_node_while_there_is_room() -> None:
    """Two replicas of two sequence parts of two tensor-parallel chips: eight chips, one node."""
    setting = make_setting([make_pool("a", nodes=2, chips_per_node=8)], make_model(blocks=6))
    placed = place([demand(("a", 2, 0, 4), ("a", 2, 4, 8), dp=2, cp=2)], setting)
    for stage in placed[0].stages:
        assert len({chip.rpartition("/")[0] for chip in stage.chips}) == 1
        assert len(set(stage.chips)) == 8


def test_lost_chips_are_left_out() -> None:
    """One chip of a node lost: its three others still take a pair and a single one."""
    setting = make_setting([make_pool("a", nodes=2, chips_per_node=4)], make_model(blocks=6))
    shape = demand(("a", 2, 0, 3), ("a", 2, 3, 6), ("a", 2, 6, 7), ("a", 1, 7, 8))
    placed = place([shape], setting, without={"here/a/0/1"})
    plan = make_plan(replace(setting, job=make_job(4)), *placed)
    assert "here/a/0/1" not in plan.chips
    assert check(plan, replace(setting, job=make_job(4))) == []
    four = demand(("a", 2, 0, 3), ("a", 2, 3, 6), ("a", 2, 6, 7), ("a", 2, 7, 8))
    with pytest.raises(PlanError, match="1 of 4 groups of 2 tensor-parallel chips find no node"):
        place([four], setting, without={"here/a/0/1"})


def test_fragments_that_no_order_of_first_fit_packs() -> None:
    """Degrees 3 and 2 in nodes of six: the pack decides, and every group keeps its node."""
    heads = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6}
    model = Model.from_config({**make_model(blocks=6).config, **heads, "intermediate_size": 192})
    setting = make_setting([make_pool("a", nodes=2, chips_per_node=6)], model)
    shape = demand(("a", 3, 0, 2), ("a", 2, 2, 4), ("a", 3, 4, 6), ("a", 2, 6, 7), ("a", 2, 7, 8))
    placed = place([shape], setting)
    groups = [stage.chips for stage in placed[0].stages]
    assert all(len({chip.rpartition("/")[0] for chip in group}) == 1 for group in groups)
    assert len({chip for group in groups for chip in group}) == 12


def test_ten_thousand_chips_get_few_layouts_and_each_one_chip_once() -> None:
    """The work does not grow with the number of arrangements: about twenty layouts a pool."""
    pools = [make_pool(name, nodes=625, chips_per_node=8) for name in "ab"]
    setting = make_setting(pools, make_model(blocks=6), make_job(4 * 1250))
    shape = demand(("a", 2, 0, 2), ("a", 2, 2, 4), ("b", 2, 4, 6), ("b", 2, 6, 8))
    placed = place([shape] * 1250, setting)
    assert len(set(make_plan(setting, *placed).chips)) == 10_000
    assert sum(1 for _ in layouts(fragments_of(placed, pools[0]))) < 30
