from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.predict.schedule import (
    Action,
    ActionKind,
    GradientGroup,
    gradient_groups,
    pipeline_actions,
    plan_actions,
)
from pluribus.predict.timeline import Durations, Lane, simulate
from pluribus.spec.plan import Pipeline, Plan

from ..small import make_pipeline

F, B, STEP, REDUCE = (
    ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.STEP, ActionKind.REDUCE,
)  # fmt: skip
SEND_A, RECV_A = ActionKind.SEND_ACTIVATION, ActionKind.RECV_ACTIVATION
SEND_G, RECV_G = ActionKind.SEND_GRADIENT, ActionKind.RECV_GRADIENT


def line(stages: int, micro_batches: int, schedule: str = "1f1b") -> Pipeline:
    return make_pipeline(
        *((f"here/a/0/{s}", s, s + 1) for s in range(stages)),
        micro_batches=micro_batches, schedule=schedule,
    )  # fmt: skip


def lists(pipeline: Pipeline) -> dict[Lane, tuple[Action, ...]]:
    return {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}


def durations(
    forward: Sequence[float], backward: Sequence[float], transfer: float = 0.0
) -> Durations:
    compute = {((0, s), F): f for s, f in enumerate(forward)}
    compute |= {((0, s), B): b for s, b in enumerate(backward)}
    return Durations(compute, lambda a, b: transfer, ())


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (1, 4), (4, 1), (3, 2), (4, 9)])
def test_equal_stages_take_the_textbook_time(
    schedule: str, stages: int, micro_batches: int
) -> None:
    """(M + S − 1)(f + b), Huang et al. 2019; PipeDream-Flush has the same bubble."""
    times = durations([2.0] * stages, [3.0] * stages)
    timeline = simulate(lists(line(stages, micro_batches, schedule)), times)
    assert timeline.end == pytest.approx((micro_batches + stages - 1) * 5)


def test_a_slow_stage_sets_the_pace() -> None:
    timeline = simulate(lists(line(3, 10)), durations([1, 4, 1], [2, 8, 2]))
    # Fill to the slow stage, its ten micro-batches without a pause, drain from it.
    assert timeline.end == pytest.approx(1 + 10 * 12 + 2)
    assert timeline.seconds((0, 1), F, B) == pytest.approx(120)
    assert timeline.seconds((0, 0), F, B) == pytest.approx(30)


def fixed_point(
    actions: Mapping[Lane, Sequence[Action]],
    times: Durations,
    groups: Sequence[GradientGroup],
) -> dict[tuple[Lane, int], float]:
    """Longest paths by relaxing every equation until nothing moves: slow, and unlike `simulate`."""
    end = {(lane, i): 0.0 for lane, program in actions.items() for i in range(len(program))}
    arrived: dict[tuple[Lane, ActionKind, int], float] = {}
    where = {
        (lane, action): i for lane, program in actions.items() for i, action in enumerate(program)
    }

    def before(lane: Lane, i: int) -> float:
        return end[lane, i - 1] if i else 0.0

    moved = True
    while moved:
        moved = False
        for lane, program in actions.items():
            free: dict[ActionKind, float] = {}
            for i, action in enumerate(program):
                kind, now = action.kind, before(lane, i)
                if kind in (SEND_A, SEND_G):
                    peer = (lane[0], lane[1] + (1 if kind is SEND_A else -1))
                    free[kind] = max(now, free.get(kind, 0.0)) + times.transfer(lane, peer)
                    arrived[lane, kind, action.index] = free[kind]
                elif kind in (RECV_A, RECV_G):
                    sender = (lane[0], lane[1] + (-1 if kind is RECV_A else 1))
                    sent = SEND_A if kind is RECV_A else SEND_G
                    now = max(now, arrived.get((sender, sent, action.index), 0.0))
                elif kind is REDUCE:
                    holders = groups[action.index].holders
                    now = max(before(other, where[other, action]) for other in holders)
                    now += times.reduce[action.index]
                else:
                    now += times.compute[lane, kind]
                if now > end[lane, i]:
                    end[lane, i] = now
                    moved = True
    return end


spans = st.integers(0, 20).map(float)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_timeline_is_the_longest_path(data: st.DataObject) -> None:
    num_layers = 4
    pipelines = []
    for p in range(data.draw(st.integers(1, 3), "pipelines")):
        cuts = data.draw(st.sets(st.integers(1, num_layers - 1)), "cuts")
        ends = [0, *sorted(cuts), num_layers]
        pipelines.append(
            make_pipeline(
                *((f"here/p{p}/0/{s}", a, b) for s, (a, b) in enumerate(itertools.pairwise(ends))),
                micro_batches=data.draw(st.integers(1, 5), "micro-batches"),
                schedule=data.draw(st.sampled_from(["1f1b", "gpipe"]), "schedule"),
            )
        )
    plan = Plan(
        pipelines=tuple(pipelines), job={}, job_digest="", cluster={}, cluster_digest="",
        model_config={},
    )  # fmt: skip
    tied = data.draw(st.sampled_from([None, (0, num_layers - 1)]), "tied")
    groups = gradient_groups(plan, tied)
    actions = {
        (p, s): program
        for p, stages in enumerate(plan_actions(plan, groups))
        for s, program in enumerate(stages)
    }
    compute = {(lane, kind): data.draw(spans) for lane in actions for kind in (F, B, STEP)}
    transfers = {
        (p, s, t): data.draw(spans) for p, s in actions for t in (s - 1, s + 1) if (p, t) in actions
    }
    times = Durations(
        compute, lambda a, b: transfers[a[0], a[1], b[1]], [data.draw(spans) for _ in groups]
    )
    timeline = simulate(actions, times, groups)
    expected = fixed_point(actions, times, groups)
    for lane, program in actions.items():
        got = timeline.lanes[lane]
        assert [span.action for span in got] == list(program)
        assert [span.end for span in got] == [expected[lane, i] for i in range(len(program))]
        # Spans follow each other without a gap: waiting is part of the receive or the sum.
        assert [span.start for span in got] == [0.0, *(span.end for span in got[:-1])]
        own = timeline.seconds(lane, F, B, STEP)
        count = plan.pipelines[lane[0]].micro_batches
        assert own == count * (compute[lane, F] + compute[lane, B]) + compute[lane, STEP]
    assert timeline.end == max(expected.values())


def test_messages_of_one_direction_share_the_link() -> None:
    times = durations([1, 1], [1, 1], transfer=10.0)
    timeline = simulate(lists(line(2, 3, "gpipe")), times)
    arrivals = [span.end for span in timeline.lanes[0, 1] if span.action.kind is RECV_A]
    # Sent at 1, 2 and 3; each is 10 s on the wire, one behind the other.
    assert arrivals == [11, 21, 31]


def test_messages_of_opposite_directions_do_not() -> None:
    timeline = simulate(lists(line(2, 2)), durations([1, 1], [1, 1], transfer=10.0))
    # F0 F1 at 0-2; messages arrive at 11 and 21; B0 ends at 13, its gradient comes at 23.
    first = next(span for span in timeline.lanes[0, 0] if span.action == Action(RECV_G, 0))
    assert first.end == 23


def test_a_sum_waits_for_its_last_member() -> None:
    plan = Plan(
        pipelines=(
            make_pipeline(("here/a/0/0", 0, 2), micro_batches=1),
            make_pipeline(("here/b/0/0", 0, 2), micro_batches=3),
        ),
        job={}, job_digest="", cluster={}, cluster_digest="", model_config={},
    )  # fmt: skip
    groups = gradient_groups(plan)
    actions = {(p, 0): stages[0] for p, stages in enumerate(plan_actions(plan, groups))}
    compute = {((p, 0), kind): 1.0 for p in (0, 1) for kind in (F, B, STEP)}
    timeline = simulate(actions, Durations(compute, lambda a, b: 0.0, [5.0]), groups)
    assert [timeline.lanes[p, 0][-2].end for p in (0, 1)] == [11, 11]
    assert [timeline.seconds((p, 0), REDUCE) for p in (0, 1)] == [9, 5]
    assert timeline.end == 12


def test_stages_may_begin_later() -> None:
    actions = {(0, 0): (Action(F), Action(B))}
    timeline = simulate(actions, durations([1], [2]), start={(0, 0): 7.0})
    assert [(span.start, span.end) for span in timeline.lanes[0, 0]] == [(7, 8), (8, 10)]


def test_a_send_may_hold_its_sender() -> None:
    times = durations([1, 1], [1, 1], transfer=0.5)
    costly = Durations(times.compute, times.transfer, (), blocking=True)
    timeline = simulate(lists(line(2, 2)), costly)
    assert timeline.seconds((0, 0), SEND_A) == 1.0
    assert timeline.end > simulate(lists(line(2, 2)), times).end


def without(program: tuple[Action, ...], action: Action) -> tuple[Action, ...]:
    assert action in program
    return tuple(a for a in program if a != action)


def test_lists_that_wait_for_each_other_are_our_own_mistake() -> None:
    good = lists(line(2, 2))
    times = durations([1, 1], [1, 1])
    lost = {**good, (0, 0): without(good[0, 0], Action(SEND_A, 1))}
    with pytest.raises(AssertionError, match="deadlock"):
        simulate(lost, times)
    # Backward before forward: the gradient can only come once the activation has gone.
    crossed = {**good, (0, 0): (Action(RECV_G, 0), *without(good[0, 0], Action(RECV_G, 0)))}
    with pytest.raises(AssertionError, match="deadlock"):
        simulate(crossed, times)


def test_sums_in_unlike_order_are_our_own_mistake() -> None:
    groups = (GradientGroup((0,), ((0, 0), (1, 0))), GradientGroup((1,), ((0, 0), (1, 0))))
    actions = {
        (0, 0): (Action(REDUCE, 0), Action(REDUCE, 1)),
        (1, 0): (Action(REDUCE, 1), Action(REDUCE, 0)),
    }
    with pytest.raises(AssertionError, match="deadlock"):
        simulate(actions, Durations({}, lambda a, b: 0.0, [1.0, 1.0]), groups)


def test_messages_that_block_hold_up_both_sides() -> None:
    """Two stages, two micro-batches, by hand: passes of 1 s, messages of 10 s."""
    pipeline = make_pipeline(("h/p/0/0", 0, 1), ("h/p/0/1", 1, 2), micro_batches=2)
    actions = dict(zip([(0, 0), (0, 1)], pipeline_actions(pipeline), strict=True))
    compute = {
        (lane, kind): 1.0
        for lane in actions
        for kind in (ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.STEP)
    }
    ends = {}
    for blocking in (False, True):
        durations = Durations(compute, lambda a, b: 10.0, (), blocking=blocking)
        ends[blocking] = simulate(actions, durations).courses
    first, last = ends[True][0, 0], ends[True][0, 1]
    # The first forward is sent by 11; the second begins only then.
    assert first.ends[:2] == (1.0, 11.0)
    assert ends[False][0, 0].ends[:3] == (1.0, 1.0, 2.0)
    # The last stage receives by 11, works until 13 and stands still until its gradient is out.
    kinds = [action.kind for action in last.actions]
    sent = kinds.index(ActionKind.SEND_GRADIENT)
    assert last.ends[sent] == 23.0
    assert ends[True][0, 0].end > ends[False][0, 0].end
