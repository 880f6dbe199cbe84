"""Price tables against the predictor, and the queue of shapes against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.model.share import Share
from pluribus.plan.shape_space import LEFT_OVER, Shape
from pluribus.plan.shapes import Candidate, ShapeFinder
from pluribus.plan.table import StageKind, StageTable
from pluribus.predict.memory import stage_memory
from pluribus.predict.schedule import max_in_flight
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Stage

from ..small import make_chip, make_job, make_model, make_pool, make_setting


@settings(max_examples=40, deadline=None)
@given(
    tied=st.booleans(),
    tp=st.sampled_from([1, 2]),
    recompute=st.sampled_from(["none", "full"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    size=st.sampled_from([1, 4]),
    micro_batches=st.integers(1, 5),
    cuts=st.sets(st.integers(1, 7), max_size=4),
)
def test_the_table_agrees_with_the_predictor(
    tied: bool, tp: int, recompute: str, precision: str, size: int, micro_batches: int,
    cuts: set[int],
) -> None:  # fmt: skip
    chip = make_chip(gib=3, precisions=("bf16", "fp32"))
    setting = make_setting(
        [make_pool("a", chip, nodes=6, chips_per_node=2)],
        make_model(blocks=6, vocab=1001, tied=tied),
        make_job(precision=precision),
    )
    table = StageTable(setting, StageKind("here/a", tp, size, recompute))
    stages = tuple(
        Stage(
            chips=tuple(f"here/a/{s}/{i}" for i in range(tp)), layers=run, tensor_parallel=tp,
            recompute=recompute,
        )
        for s, run in enumerate(itertools.pairwise((0, *sorted(cuts), 8)))
    )  # fmt: skip
    pipeline = Pipeline(stages=stages, micro_batch_size=size, micro_batches=micro_batches)
    for s, stage in enumerate(stages):
        memory = stage_memory(setting, pipeline, s)
        over = table.overflow(max_in_flight(pipeline, s))[stage.layers]
        assert over == pytest.approx(memory.total - memory.capacity, abs=1)
        seconds = setting.stage_time(stage, size).total
        assert table.seconds[stage.layers] == pytest.approx(seconds)


def test_a_run_that_does_not_fit_costs_infinity() -> None:
    """2 GiB of the chip's 2.85 GiB go to the process; a block of 0.3 GiB fits twice."""
    model = make_model(blocks=6, hidden=1536)
    setting = make_setting([make_pool("a", make_chip(gib=3))], model)
    table = StageTable(setting, StageKind("here/a", 1, 1, "none"))
    room = 0.95 * 3 * 2**30 - 2 * 2**30 - 2 * 128 * 1536 * 2
    block = model.layers[1].parameters * 18
    block += model.layers[1].activation_bytes(Share(1, 128, bytes_per_element=2))
    most = int(room // block)
    assert most in range(1, 6)  # or the test says nothing
    seconds = table.feasible(1)
    assert math.isfinite(seconds[1, 1 + most])
    assert math.isinf(seconds[1, 2 + most])
    assert math.isinf(seconds[3, 3])
    assert table.most_layers(1) >= most


@st.composite
def small_settings(draw: st.DrawFn) -> Setting:
    pools = [
        make_pool(
            name,
            make_chip(
                f"chip-{name}", tflops=draw(st.sampled_from([1, 2, 5])),
                gib=draw(st.sampled_from([2.3, 2.6, 8])),
            ),
            nodes=draw(st.integers(1, 3)),
            chips_per_node=draw(st.sampled_from([1, 2])),
            gbps=draw(st.sampled_from([1, 100])),
        )
        for name in ("a", "b")[: draw(st.integers(1, 2))]
    ]  # fmt: skip
    model = make_model(
        blocks=draw(st.integers(1, 5)), hidden=draw(st.sampled_from([64, 512])),
        vocab=draw(st.sampled_from([64, 4096])), tied=draw(st.booleans()),
    )  # fmt: skip
    job = make_job(batch=draw(st.sampled_from([2, 6, 12])), sizes=(1, 2), sequence=512)
    return make_setting(pools, model, job)


def seconds_of(candidate: Candidate, sequences: int) -> float:
    return candidate.seconds(candidate.shape.micro_batches(sequences))


@settings(max_examples=40, deadline=None)
@given(setting=small_settings(), size=st.sampled_from([1, 2]))
def test_the_queue_finds_what_brute_force_finds(setting: Setting, size: int) -> None:
    """Best over all shapes and orders: the bounds throw nothing away that could be best."""
    finder = ShapeFinder(setting)
    team = tuple(pool.address for pool in setting.cluster.pools)
    sequences = setting.job.train.global_batch
    every = []
    space = finder.space(team, size, sequences)
    sharps = space.sharp(np.arange(len(space))) if len(space) else []
    for shape, quick, sharp in zip(space, space.quick, sharps, strict=True):
        times = []
        for order in itertools.permutations(range(len(team))):
            candidate = finder.cut(shape.reordered(order), sequences)
            if candidate is not None:
                times.append(seconds_of(candidate, sequences))
        if times:
            assert quick <= min(times) * (1 + 1e-9)
            assert sharp <= min(times) * (1 + 1e-9)
            every.append(min(times))
    found = [seconds_of(c, sequences) for c in finder.best(team, size, sequences, keep=3)]
    assert found == pytest.approx(sorted(every)[:3])


@settings(max_examples=25, deadline=None)
@given(setting=small_settings())
def test_no_shape_that_was_left_out_is_faster(setting: Setting) -> None:
    """Without gradient sums: any count of pipelines, against those enumerated; of few chips, any
    depth of each, too."""
    finder = ShapeFinder(setting)
    team = tuple(pool.address for pool in setting.cluster.pools)
    sequences = setting.job.train.global_batch
    layers = len(setting.model.layers)

    def fastest(shapes: list[Shape]) -> float:
        candidates = (finder.cut(shape, sequences) for shape in shapes)
        times = (seconds_of(c, sequences) - c.tail for c in candidates if c is not None)
        return min(times, default=math.inf)

    everything = []
    pools = [setting.pool(address) for address in team]
    for degrees in itertools.product(*map(finder.tensor_parallel_degrees, pools)):
        groups = [p.num_chips // tp for p, tp in zip(pools, degrees, strict=True)]
        for pipelines in range(1, min(*groups, sequences) + 1):
            deepest = [min(g // pipelines, layers) for g in groups]
            shallow = sum(groups) <= LEFT_OVER
            ways = itertools.product(*(range(1 if shallow else most, most + 1) for most in deepest))
            everything += [
                Shape(team, stages, degrees, pipelines, 1, recompute)
                for stages in ways
                for recompute in ("none", "full")
            ]
    listed = fastest(list(finder.shapes(team, 1, sequences)))
    assert listed == pytest.approx(fastest(everything), rel=1e-9)


def test_tensor_parallel_stays_in_a_node_and_divides_the_model() -> None:
    pool = make_pool("a", nodes=4, chips_per_node=8)
    finder = ShapeFinder(make_setting([pool], make_model()))  # 4 heads, 2 key-value heads
    degrees = finder.tensor_parallel_degrees(pool)
    assert degrees[:2] == [1, 2]
    assert all(8 % tp == 0 for tp in degrees)
    assert all(layer.supports_tp(tp) for tp in degrees for layer in make_model().layers)
    assert 8 not in degrees  # four heads do not divide over eight
    odd = make_pool("a", chips_per_node=3)
    assert ShapeFinder(make_setting([odd])).tensor_parallel_degrees(odd) == [1]


def test_slow_links_turn_replicas_into_stages() -> None:
    """Gradient sums count in a shape's place: over a slow network four replicas lose to one
    pipeline of four stages, over a fast one they win."""
    model = make_model(blocks=6, hidden=512)
    job = make_job(batch=32, sizes=(1,), recompute="none")
    pipelines = []
    for gbps in (0.1, 10_000):
        pool = make_pool("a", make_chip(tflops=1), nodes=4, gbps=gbps)
        finder = ShapeFinder(make_setting([pool], model, job))
        best = finder.best(("here/a",), 1, 32, keep=1)[0]
        pipelines.append(best.shape.pipelines)
    assert pipelines[0] < pipelines[1] == 4


def test_pipelines_use_each_chip_once_and_stay_in_a_node() -> None:
    setting = make_setting([make_pool("a", nodes=3, chips_per_node=4), make_pool("b", nodes=3)])
    finder = ShapeFinder(setting)
    shape = Shape(("here/a", "here/b"), (2, 1), (2, 1), 3, 1, "none")
    candidate = finder.cut(shape, 12)
    assert candidate is not None
    pipelines = finder.pipelines(candidate, (4, 4, 4))
    assert pipelines[1].stages[1].chips == ("here/a/1/2", "here/a/1/3")
    assert pipelines[2].stages[2].chips == ("here/b/2/0",)
    chips = [c for pipeline in pipelines for stage in pipeline.stages for c in stage.chips]
    assert len(chips) == len(set(chips)) == 15


def test_more_stages_than_layers_is_no_cut() -> None:
    setting = make_setting([make_pool("a", nodes=9)], make_model(blocks=2))
    finder = ShapeFinder(setting)
    assert finder.cut(Shape(("here/a",), (5,), (1,), 1, 1, "none"), 4) is None
    assert max(shape.depth for shape in finder.shapes(("here/a",), 1, 4)) == 4
