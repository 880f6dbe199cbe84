from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.predict import waves as module
from pluribus.predict.schedule import ActionKind, Structure, passes, pipeline_actions
from pluribus.predict.timeline import Durations, Lane, simulate
from pluribus.predict.waves import make_waves, waves
from pluribus.spec.plan import Pipeline

from .test_schedules import line, pipelines

WAIT = (
    ActionKind.RECV_ACTIVATION, ActionKind.RECV_GRADIENT,
    ActionKind.SEND_ACTIVATION, ActionKind.SEND_GRADIENT,
)  # fmt: skip


def reference(pipeline: Pipeline, compute: np.ndarray, wires: np.ndarray) -> tuple:
    """(begin, end, busy) of each stage by `simulate`. ``wires``: [from stage, to stage]."""
    place = Structure.of(pipeline).placement
    seconds = {
        ((0, s), kind): tuple(
            float(compute[k, place.virtual(s, c)]) for c in range(place.chunks)
        )
        for s in range(place.num_stages)
        for k, kind in enumerate(waves(pipeline).kinds)
    }  # fmt: skip

    def transfer(a: Lane, b: Lane) -> float:
        return float(wires[a[1], b[1]])

    lists = {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}
    timeline = simulate(lists, Durations(seconds, transfer, ()))
    own = [[x for x in timeline.lanes[lane] if x.action.kind not in WAIT] for lane in lists]
    return (
        [spans[0].start for spans in own],
        [spans[-1].end for spans in own],
        [sum(span.seconds for span in spans) for spans in own],
    )


@settings(max_examples=60, deadline=None)
@given(pipeline=pipelines(), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3))
def test_waves_agree_with_the_simulation(pipeline: Pipeline, seed: int, count: int) -> None:
    """Unequal stages, chunks and links. No pass is shorter than a message: no link has a queue."""
    rng = np.random.default_rng(seed)
    prepared = waves(pipeline)
    place = prepared.placement
    num_virtual = place.num_virtual
    compute = rng.uniform(1, 3, (count, len(prepared.kinds), num_virtual))
    # With two stages of several chunks activations and gradients share a link: two at a time.
    wires = rng.uniform(0, 0.05, (count, place.num_stages, place.num_stages))
    transfer = np.zeros((count, 2, num_virtual - 1))
    for u in range(num_virtual - 1):
        a, b = place.home(u)[0], place.home(u + 1)[0]
        transfer[:, 0, u], transfer[:, 1, u] = wires[:, a, b], wires[:, b, a]
    found = prepared.solve(compute, transfer)
    for i in range(count):
        begin, end, busy = reference(pipeline, compute[i], wires[i])
        if place.chunks == 1:
            assert found.begin[i] == pytest.approx(begin)
            assert found.end[i] == pytest.approx(end)
        else:  # two messages can still meet on a link, and one wait for the other
            assert (found.end[i] <= np.array(end) + 1e-9).all()
            assert found.end[i] == pytest.approx(end, rel=0.02)
        assert found.busy[i] == pytest.approx(busy)
        alone = prepared.solve(compute[i : i + 1], transfer[i : i + 1])
        assert alone.end[0] == pytest.approx(found.end[i], rel=1e-12)


def test_chunks_agree_exactly_where_messages_take_no_time() -> None:
    for pipeline in (line(3, 6, "interleaved", 3), line(4, 9, "zbv")):
        prepared = waves(pipeline)
        place = prepared.placement
        rng = np.random.default_rng(1)
        compute = rng.uniform(1, 3, (1, len(prepared.kinds), place.num_virtual))
        _, end, _ = reference(pipeline, compute[0], np.zeros((place.num_stages,) * 2))
        assert prepared.solve(compute).end[0] == pytest.approx(end)


def test_a_message_longer_than_a_pass_only_queues_in_the_simulation() -> None:
    """Two stages, GPipe: the third activation waits for two others on the link."""
    pipeline = line(2, 3, "gpipe")
    compute = np.ones((1, 2, 2))
    found = waves(pipeline).solve(compute, 10.0)
    _, end, _ = reference(pipeline, compute[0], np.full((2, 2), 10.0))
    # Last forward done at 3, its activation comes at 13 instead of 31.
    assert found.end[0, 1] == 13 + 1 + 3
    assert end[1] == 31 + 1 + 3


def test_what_is_read_off() -> None:
    """Two equal stages, two micro-batches, 1F1B by hand: f = 1, b = 2."""
    times = waves(line(2, 2, "1f1b")).solve([[[1, 1], [2, 2]]])
    assert times.begin.tolist() == [[0, 1]]
    assert times.end.tolist() == [[9, 7]]
    assert times.busy.tolist() == [[6, 6]]
    assert times.waits.tolist() == [[3, 0]]
    assert times.pipeline_end.tolist() == [9]
    assert times.bubble_rate == pytest.approx([1 / 3])


def test_many_candidates_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = waves(line(3, 4, "zb-h1"))
    compute = np.random.default_rng(3).uniform(1, 2, (50, 3, 3))
    whole = prepared.solve(compute, 0.5)
    monkeypatch.setattr(module, "_BLOCK", 3 * len(prepared.duration))
    parts = prepared.solve(compute, 0.5)
    assert (parts.end == whole.end).all()
    assert (parts.begin == whole.begin).all()


def test_an_order_that_waits_for_itself_is_our_own_mistake() -> None:
    structure = Structure.of(line(2, 2, "1f1b"))
    first, last = passes(structure)
    with pytest.raises(AssertionError, match="deadlock"):
        make_waves((first[::-1], last), structure.placement, 2)
