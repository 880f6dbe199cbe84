"""Proofs hold: no pipeline delivers more than a proof says, and no step beats the bound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.bound import Bound
from pluribus.plan.columns import Column, StageChoice
from pluribus.plan.generate import Generator
from pluribus.plan.pace import step_bounds
from pluribus.plan.prices import MANY
from pluribus.plan.pricing import Pricer
from pluribus.plan.proof import Proof
from pluribus.plan.rounding import deal
from pluribus.plan.score import score
from pluribus.plan.search import Search
from pluribus.predict.schedule import ActionKind, pipeline_actions
from pluribus.predict.timeline import Durations, simulate
from pluribus.spec.plan import Pipeline, Stage

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def random_generator(rng: np.random.Generator) -> Generator:
    pools = [
        make_pool(
            f"p{i}",
            make_chip(f"c{i}", tflops=float(rng.uniform(1, 4)), gib=float(rng.uniform(2.1, 2.5))),
            nodes=int(rng.integers(1, 4)), chips_per_node=int(rng.choice([1, 2, 4])),
        )
        for i in range(int(rng.integers(1, 3)))
    ]  # fmt: skip
    model = make_model(blocks=int(rng.integers(2, 7)), hidden=256)
    job = make_job(batch=int(rng.integers(4, 40)), sequence=1024, sizes=(1, 2))
    return Generator.of(make_setting(pools, model=model, job=job))


def random_column(rng: np.random.Generator, pricer: Pricer, count: int = MANY) -> Column | None:
    """One that fits with m micro-batches, if one was drawn."""
    prices = pricer.prices
    layers = len(prices.runs.kind)
    depth = int(rng.integers(1, layers + 1))
    cuts = sorted(rng.choice(np.arange(1, layers), depth - 1, replace=False).tolist())
    spans = list(itertools.pairwise([0, *cuts, layers]))
    stages = []
    for s, (a, b) in enumerate(spans):
        fits = np.flatnonzero(
            prices.most_held[:, prices.runs.kind[a, b - a]] >= min(depth - s, count)
        )
        if not len(fits):
            return None
        stages.append(StageChoice(prices.kinds[int(rng.choice(fits))], (a, b)))
    return Column(tuple(stages), prices.micro_batch_size)


def timed(floor: Generator, column: Column, count: int) -> float:
    """Seconds of a step of m micro-batches by the timeline, with each stage's own tail."""
    pricer, pace = floor.pricers[column.micro_batch_size], floor.pace(column)
    depth = len(column.stages)
    pipeline = Pipeline(
        stages=tuple(Stage(chips=(f"a/b/0/{s}",), layers=(s, s + 1)) for s in range(depth)),
        micro_batch_size=1, micro_batches=count,
    )  # fmt: skip
    compute = {}
    for s in range(depth):
        compute[(0, s), ActionKind.FORWARD] = (float(pace.forward[s]),)
        compute[(0, s), ActionKind.BACKWARD] = (float(pace.backward[s]),)
    durations = Durations(compute, lambda a, b: float(pace.hops[min(a[1], b[1])]) / 2, ())
    lanes = {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}
    courses = simulate(lanes, durations).courses
    kind = floor.runs.kind
    return max(
        courses[0, s].end
        + pricer.tails[pricer.prices.kinds.index(x.kind), kind[x.layers[0], x.num_layers]]
        for s, x in enumerate(column.stages)
    )


def held(floor: Generator, column: Column, count: int) -> bool:
    """Whether m micro-batches fit."""
    prices, kind = floor.pricers[column.micro_batch_size].prices, floor.runs.kind
    depth = len(column.stages)
    return all(
        prices.most_held[prices.kinds.index(x.kind), kind[x.layers[0], x.num_layers]]
        >= min(depth - s, count)
        for s, x in enumerate(column.stages)
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_no_timeline_delivers_more_than_was_proven(seed: int) -> None:
    """Of pipelines that fit with few micro-batches, too, and with prices of theirs alone."""
    rng = np.random.default_rng(seed)
    generator = random_generator(rng)
    if not generator.speeds.any():
        return
    floor = Generator(generator.setting, generator.pools, generator.available, estimates_sums=False)
    floor.pricers.update(Bound(generator)._among)
    # Sums that differ from stage to stage.
    for size, pricer in floor.pricers.items():
        tails = pricer.tails * rng.uniform(0.5, 2, pricer.tails.shape)
        scale = rng.choice([0.0, 0.3, 3.0]) * pricer.prices.seconds.mean() / tails.mean()
        floor.pricers[size] = replace(pricer, tails=tails * scale)
    count, size = int(rng.integers(1, 13)), int(rng.choice(list(floor.pricers)))
    pricer = floor.pricers[size]
    columns = [c for _ in range(80) if (c := random_column(rng, pricer, count)) is not None]
    if not columns:
        return
    times = np.array([timed(floor, column, count) for column in columns])
    chosen = rng.choice(np.argsort(times)[:3])
    deadline, chips = times[chosen] * (1 + 1e-9), floor.chips_of(columns)
    prices = rng.uniform(0.2, 1, len(floor.pools))
    prices *= size * count / float(prices @ chips[:, chosen]) * rng.choice([0.9, 0.999, 1.001])
    # Of those in time, the most that one delivers for its chips.
    if Proof(pricer, prices, deadline, 1, floor.batch // size).run() is None:
        for column, cost in zip(columns, prices @ chips, strict=True):
            for m in range(1, floor.batch // size + 1):
                if size * m > cost * (1 + 1e-9) and held(floor, column, m):
                    assert timed(floor, column, m) > deadline


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), generated=st.booleans())
def test_no_pipeline_delivers_more_than_was_proven(seed: int, generated: bool) -> None:
    rng = np.random.default_rng(seed)
    generator = random_generator(rng)
    if not generator.speeds.any():
        return
    floor = Generator(generator.setting, generator.pools, generator.available, estimates_sums=False)
    floor.pricers.update(Bound(generator)._among)
    if generated:
        least = floor.generate()
        columns = floor.columns
    else:
        pricer = floor.pricers[1]
        columns = [c for _ in range(60) if (c := random_column(rng, pricer)) is not None]
        least = min((floor.pace(c).seconds(4) for c in columns), default=np.inf)
    if not np.isfinite(least):
        return
    deadline = least * float(rng.choice([0.6, 0.9, 1.0, 1.0, 1.3]))
    delivered, chips = floor.delivered(columns, deadline), floor.chips_of(columns)
    # Prices at which some of these are just worth it, and prices a little lower or higher.
    prices = floor.mix(deadline, columns).chip_values
    prices = prices * rng.choice([0.99, 0.998, 0.9999, 1.001, 1.02, 1.2])
    for size, pricer in floor.pricers.items():
        if Proof(pricer, prices, deadline, 1, floor.batch // size).run() is None:
            mine = [c.micro_batch_size == size for c in columns]
            assert (delivered <= prices @ chips * (1 + 1e-9))[mine].all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**20), depth=st.integers(2, 6), count=st.integers(3, 24))
def test_the_later_stages_are_a_pipeline_too(seed: int, depth: int, count: int) -> None:
    if count <= depth:
        return
    rng = np.random.default_rng(seed)
    forward, backward = rng.uniform(0.2, 3, (2, depth))
    hops = rng.choice([0.0, 0.1, 2.0]) * rng.uniform(0, 1, depth - 1)
    pipeline = Pipeline(
        stages=tuple(Stage(chips=(f"a/b/0/{s}",), layers=(s, s + 1)) for s in range(depth)),
        micro_batch_size=1, micro_batches=count,
    )  # fmt: skip
    compute = {}
    for s in range(depth):
        compute[(0, s), ActionKind.FORWARD] = (float(forward[s]),)
        compute[(0, s), ActionKind.BACKWARD] = (float(backward[s]),)
    durations = Durations(compute, lambda a, b: float(hops[min(a[1], b[1])]) / 2, ())
    lanes = {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}
    end = simulate(lanes, durations).courses[0, 0].end
    t = forward + backward
    later = float(t[1:].sum() + hops[1:].sum())
    for k in range(1, (count - 1) // (depth - 1) + 1):
        rest = (count - 1 - k * (depth - 1)) * float(t[1:].max())
        assert float(t[0] + hops[0]) + (k + 1) * later + rest <= end * (1 + 1e-9)
    assert float(step_bounds(forward, backward, hops, [count])[0]) <= end * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_no_whole_plan_is_quicker_than_the_bound(seed: int) -> None:
    """Whatever columns it is made of: those of the proof, or drawn at random."""
    rng = np.random.default_rng(seed)
    generator = random_generator(rng)
    bound = Bound(generator)
    if not np.isfinite(bound.seconds):
        return
    assert bound.seconds >= generator.ideal_seconds * (1 - 1e-9)
    pricer = generator.pricers[1]
    drawn = [c for _ in range(20) if (c := random_column(rng, pricer)) is not None]
    columns = [*bound.floor.columns, *drawn]
    uses = [{c: 1} for c in columns]
    for _ in range(10):
        pair = [columns[i] for i in rng.integers(0, len(columns), 2)]
        uses.append({c: pair.count(c) for c in pair})
    for use in uses:
        taken = generator.chips_of(list(use)) @ np.array(list(use.values()))
        team = deal(generator, use) if (taken <= generator.available).all() else None
        scored = score(team, generator.setting) if team else None
        if scored is not None:
            assert scored.seconds >= bound.seconds * (1 - 1e-9)


def test_pipelines_are_whole() -> None:
    """The model takes two of three chips: a pipeline and a half would be quickest, and one is."""
    chip = make_chip("chip", gib=2.19)
    setting = make_setting(
        [make_pool("a", chip, nodes=3)], make_model(blocks=6, hidden=256),
        make_job(batch=12, sequence=1024, sizes=(1,)),
    )  # fmt: skip
    bound = Bound(Generator.of(setting))
    fractions = bound.floor.generate()
    assert bound.floor.mix(fractions).uses.sum() == pytest.approx(1.5)
    best = Search(setting).best()
    assert best.prediction is not None
    assert 1.03 * fractions < bound.seconds <= best.prediction.step_seconds.mid
