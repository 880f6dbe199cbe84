"""Closed forms against the timeline: never above it, and close."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.columns import Column
from pluribus.plan.pace import Pace, step_bounds
from pluribus.predict.schedule import ActionKind, pipeline_actions
from pluribus.predict.software import PLURIBUS
from pluribus.predict.timeline import Durations, simulate

from ..small import make_pipeline


def timeline_end(forward, backward, hops, micro_batches: int) -> float:
    return timeline_ends(forward, backward, hops, micro_batches)[0]


def timeline_ends(forward, backward, hops, micro_batches: int) -> np.ndarray:
    """[S] the end of each stage's last backward."""
    size = len(forward)
    stages = [(f"here/a/{s}/0", s, s + 1) for s in range(size)]
    pipeline = make_pipeline(*stages, micro_batches=micro_batches)
    compute = {}
    for s in range(size):
        compute[(0, s), ActionKind.FORWARD] = forward[s]
        compute[(0, s), ActionKind.BACKWARD] = backward[s]
    durations = Durations(compute, lambda a, b: hops[min(a[1], b[1])] / 2, [])
    lanes = [(0, s) for s in range(size)]
    actions = dict(zip(lanes, pipeline_actions(pipeline), strict=True))
    courses = simulate(actions, durations).courses
    return np.array([courses[0, s].end for s in range(size)])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.integers(1, 8), micro_batches=st.integers(1, 40))
def test_no_bound_is_above_the_timeline(data: st.DataObject, size: int, micro_batches: int) -> None:
    seconds = st.floats(0.05, 2)
    forward = np.array([data.draw(seconds) for _ in range(size)])
    backward = forward * data.draw(st.sampled_from([1.0, 2.0, 3.0]))
    hops = np.array([data.draw(st.floats(0, 1)) for _ in range(size - 1)])
    end = timeline_end(forward, backward, hops, micro_batches)
    bound = step_bounds(forward, backward, hops, [micro_batches])[0]
    assert bound <= end * (1 + 1e-9)


def test_it_is_close_for_nearly_equal_stages() -> None:
    rng = np.random.default_rng(7)
    shares = []
    for size, count in ((4, 8), (8, 32), (12, 60)):
        forward = rng.uniform(0.9, 1.0, size)
        hops = rng.uniform(0, 0.05, size - 1)
        bound = step_bounds(forward, 2 * forward, hops, [count])[0]
        shares.append(bound / timeline_end(forward, 2 * forward, hops, count))
    assert min(shares) > 0.97


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.integers(1, 9), micro_batches=st.integers(1, 30))
def test_later_stages_are_passed_more_often(seed: int, size: int, micro_batches: int) -> None:
    """The paths behind the proofs: `pluribus.plan.proof_question`."""
    rng = np.random.default_rng(seed)
    forward, backward = rng.uniform(0.2, 3, (2, size)) ** rng.choice([0.3, 1, 3])
    hops = rng.choice([0.0, 0.1, 2.0]) * rng.uniform(0, 1, size - 1)
    ends = timeline_ends(forward, backward, hops, micro_batches)
    # On the way back the last micro-batch passes all stages.
    early = np.concatenate([[0.0], np.cumsum(backward[:-1] + hops / 2)])
    t = forward + backward
    way = t + np.append(hops, 0.0)
    for _ in range(20):
        passes = np.ones(size)
        for _ in range(int(rng.integers(0, 6))):
            level = int(rng.integers(0, size))
            passes[level:] += int(rng.integers(1, 4)) if rng.integers(2) else 1
        left = micro_batches - 1 - (passes - 1).sum()
        if left < 0:
            continue
        slow = np.where(passes >= 2, t, np.maximum(forward, backward))
        assert passes @ way + left * slow.max() <= ends[0] * (1 + 1e-9)
        back = passes @ way + left * np.where(passes >= 2, t, 0.0).max() - early
        assert (back <= ends * (1 + 1e-9)).all()
    for s in range(size):
        hidden = (size - 1 - s) * min(forward[s], backward[s])
        back = way.sum() + (micro_batches - 1) * t[s] - hidden - early
        assert (back <= ends * (1 + 1e-9))[: s + 1].all()


def test_a_timed_pace_is_exact_for_its_count_and_ends_as_much_later_with_its_tail() -> None:
    rng = np.random.default_rng(3)
    forward, hops = rng.uniform(0.3, 1.0, 9), rng.uniform(0, 0.05, 8)
    pace = Pace(Column((), 1), forward, 2 * forward, hops, 0.5, 200)
    timed = pace.timed(40, PLURIBUS)
    if timed is pace:
        pytest.skip("no C compiler")
    assert timed.seconds(40) == pytest.approx(timeline_end(forward, 2 * forward, hops, 40) + 0.5)
    assert timed.stretch >= 1.0
    assert timed.with_tail(0.0).seconds(150) == pytest.approx(timed.seconds(150) - 0.5)
    assert timed.timed(40, PLURIBUS).stretch == pytest.approx(timed.stretch)
