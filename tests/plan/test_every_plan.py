"""The brute force of the bench: its floors hold, it misses nothing, our planner is near it."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.search import Search
from pluribus.plan.validate import check
from pluribus.predict.predict import forecast
from pluribus.predict.schedule import pipeline_actions
from pluribus.predict.schedules.base import ActionKind
from pluribus.predict.timeline import Durations, simulate
from pluribus.spec.plan import Pipeline, Stage

from ..small import make_chip, make_job, make_model, make_plan, make_pool, make_setting

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("every_plan", BENCH / "every_plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["every_plan"] = module
    spec.loader.exec_module(module)
    return module


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**20), depth=st.integers(1, 6), count=st.integers(1, 14),
)  # fmt: skip
def test_no_timeline_is_below_the_floor(
    bench: ModuleType, seed: int, depth: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    forward, backward = rng.uniform(0.2, 3, (2, depth))
    hop = rng.choice([0.0, 0.01, 1.0]) * rng.uniform(0, 1, depth - 1)
    pipeline = Pipeline(
        stages=tuple(Stage(chips=(f"a/b/0/{s}",), layers=(s, s + 1)) for s in range(depth)),
        micro_batch_size=1,
        micro_batches=count,
    )
    compute = {}
    for s in range(depth):
        compute[(0, s), ActionKind.FORWARD] = (float(forward[s]),)
        compute[(0, s), ActionKind.BACKWARD] = (float(backward[s]),)
    durations = Durations(compute, lambda a, b: float(hop[min(a[1], b[1])]), [])
    actions = {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}
    end = simulate(actions, durations).courses[0, 0].end
    (floor,) = bench.floors(forward[None], backward[None], 2 * hop[None], count)
    assert floor <= end * (1 + 1e-9)
    assert floor >= 0.6 * end  # and it is a floor worth having


def test_it_finds_what_trying_everything_finds(bench: ModuleType) -> None:
    """Two unlike chips, four layers, four micro-batches: every plan spelled out by hand."""
    rng = random.Random(7)
    for _ in range(4):
        pools = [
            make_pool(name, make_chip(f"chip-{name}", rng.choice([5, 10, 20])), gbps=100)
            for name in "ab"
        ]
        job = make_job(4, sequence=1024, sizes=(1,), recompute="none")
        setting = make_setting(pools, make_model(blocks=2, hidden=512), job)
        chips = ["here/a/0/0", "here/b/0/0"]
        whole = [(Stage(chips=(chip,), layers=(0, 4)),) for chip in chips]
        split = [
            (Stage(chips=(one,), layers=(0, cut)), Stage(chips=(two,), layers=(cut, 4)))
            for one, two in itertools.permutations(chips)
            for cut in (1, 2, 3)
        ]
        deals = [[(stages, 4)] for stages in (*whole, *split)]
        deals += [[(whole[0], m), (whole[1], 4 - m)] for m in (1, 2, 3)]
        steps = [
            forecast(
                make_plan(
                    setting,
                    *(Pipeline(stages=s, micro_batch_size=1, micro_batches=m) for s, m in deal),
                ),
                setting, {},
            ).prediction.step_seconds.mid
            for deal in deals
        ]  # fmt: skip
        truth = bench.best_of_all(setting)
        assert truth.seconds == pytest.approx(min(steps), rel=1e-9)
        assert check(truth.plan, setting) == []
        # Given the answer it finds nothing better, and says how much it looked at.
        again = bench.best_of_all(setting, truth.seconds)
        assert again.plan is None
        assert again.seconds == truth.seconds


def test_too_many_plans_are_said_to_be_too_many(bench: ModuleType) -> None:
    pools = [make_pool("a", nodes=6), make_pool("b", make_chip("slow", 8), nodes=6)]
    setting = make_setting(pools, make_model(blocks=4), make_job(16))
    with pytest.raises(bench.TooManyError):
        bench.best_of_all(setting, most=5)


@pytest.mark.parametrize("seed", [3, 12, 14])
def test_the_planner_is_near_the_truth(bench: ModuleType, seed: int) -> None:
    """A few cases of the bench; all two hundred are its own business."""
    sys.path.insert(0, str(BENCH))
    try:
        from planner_optimality import small_setting
    finally:
        sys.path.remove(str(BENCH))
    setting = small_setting(seed)
    plan = Search(setting).best()
    assert plan.prediction is not None
    truth = bench.best_of_all(setting, plan.prediction.step_seconds.mid)
    assert plan.prediction.step_seconds.mid <= truth.seconds * 1.02
