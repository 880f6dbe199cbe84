"""The 1F1B timeline in C gives the bits of the list scheduler, action by action."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.predict.one_f_one_b import last_backward, one_f_one_b_courses
from pluribus.predict.schedule import ActionKind, Structure, pipeline_actions
from pluribus.predict.timeline import Durations, simulate
from pluribus.spec.plan import Pipeline, Stage


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**20), depth=st.integers(1, 7), count=st.integers(1, 12),
    blocking=st.booleans(), rendezvous=st.booleans(),
)  # fmt: skip
def test_c_gives_what_the_list_scheduler_gives(
    seed: int, depth: int, count: int, blocking: bool, rendezvous: bool
) -> None:
    rng = np.random.default_rng(seed)
    stages = tuple(Stage(chips=(f"a/b/0/{s}",), layers=(s, s + 1)) for s in range(depth))
    pipeline = Pipeline(stages=stages, micro_batch_size=1, micro_batches=count)
    lanes = [(3, s) for s in range(depth)]
    compute = {}
    for lane in lanes:
        compute[lane, ActionKind.FORWARD] = (float(rng.uniform(0.2, 3)),)
        compute[lane, ActionKind.BACKWARD] = (float(rng.uniform(0.2, 3)),)
    hop = rng.choice([0.0, 0.01, 2.0]) * rng.uniform(0, 1, (depth, depth))
    durations = Durations(
        compute, lambda a, b: float(hop[a[1], b[1]]), (), blocking=blocking, rendezvous=rendezvous
    )
    courses = one_f_one_b_courses(Structure.of(pipeline), lanes, durations)
    if courses is None:
        pytest.skip("no C compiler")
    expected = simulate(dict(zip(lanes, pipeline_actions(pipeline), strict=True)), durations)
    assert list(courses) == lanes
    for lane in lanes:
        assert courses[lane].spans == expected.courses[lane].spans
        assert courses[lane].end == expected.courses[lane].end


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**20), depth=st.integers(1, 7), count=st.integers(1, 12),
    blocking=st.booleans(), rendezvous=st.booleans(),
)  # fmt: skip
def test_the_last_backward_is_that_of_the_first_stage(
    seed: int, depth: int, count: int, blocking: bool, rendezvous: bool
) -> None:
    rng = np.random.default_rng(seed)
    forward, backward = rng.uniform(0.2, 3, (2, depth))
    hops = rng.uniform(0, 1, depth - 1)
    last = last_backward(forward, backward, hops, count, blocking=blocking, rendezvous=rendezvous)
    if last is None:
        pytest.skip("no C compiler")
    lanes = [(0, s) for s in range(depth)]
    compute = {}
    for s, lane in enumerate(lanes):
        compute[lane, ActionKind.FORWARD] = float(forward[s])
        compute[lane, ActionKind.BACKWARD] = float(backward[s])
    durations = Durations(
        compute, lambda a, b: hops[min(a[1], b[1])] / 2, (), blocking=blocking,
        rendezvous=rendezvous,
    )  # fmt: skip
    stages = tuple(Stage(chips=(f"a/b/0/{s}",), layers=(s, s + 1)) for s in range(depth))
    pipeline = Pipeline(stages=stages, micro_batch_size=1, micro_batches=count)
    actions = dict(zip(lanes, pipeline_actions(pipeline), strict=True))
    assert last == simulate(actions, durations).courses[0, 0].end
