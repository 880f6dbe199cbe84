from __future__ import annotations

import bisect
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.predict.schedule import (
    Action,
    ActionKind,
    GradientGroup,
    gradient_groups,
    in_turn,
    max_in_flight,
    pipeline_actions,
    plan_actions,
)
from pluribus.spec.plan import Pipeline, Plan

from ..small import make_pipeline

F, B = ActionKind.FORWARD, ActionKind.BACKWARD
SEND_A, RECV_A = ActionKind.SEND_ACTIVATION, ActionKind.RECV_ACTIVATION
SEND_G, RECV_G = ActionKind.SEND_GRADIENT, ActionKind.RECV_GRADIENT


def line(stages: int, micro_batches: int, schedule: str = "1f1b") -> Pipeline:
    return make_pipeline(
        *((f"here/a/0/{s}", s, s + 1) for s in range(stages)),
        micro_batches=micro_batches, schedule=schedule,
    )  # fmt: skip


def plan_of(*pipelines: Pipeline) -> Plan:
    return Plan(
        pipelines=pipelines, job={}, job_digest="", cluster={}, cluster_digest="", model_config={}
    )


def compute(actions: tuple[Action, ...]) -> str:
    return " ".join(f"{a.kind.name[0]}{a.index}" for a in actions if a.kind in (F, B))


@settings(max_examples=50, deadline=None)
@given(
    num_stages=st.integers(1, 7),
    micro_batches=st.integers(1, 9),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
)
def test_every_stage_does_every_micro_batch_once(
    num_stages: int, micro_batches: int, schedule: str
) -> None:
    pipeline = line(num_stages, micro_batches, schedule)
    stages = pipeline_actions(pipeline)
    assert len(stages) == num_stages
    everything = list(range(micro_batches))
    for s, actions in enumerate(stages):
        held, fullest, last = 0, 0, {F: -1, B: -1}
        for action in actions:
            if action.kind in (F, B):
                assert action.index == last[action.kind] + 1  # each once, in order
                last[action.kind] = action.index
                held += 1 if action.kind is F else -1
                fullest = max(fullest, held)
                assert last[B] <= last[F]
        assert last == {F: micro_batches - 1, B: micro_batches - 1}
        assert fullest == max_in_flight(pipeline, s)

        def messages(kind: ActionKind, actions: tuple[Action, ...] = actions) -> list[int]:
            return [action.index for action in actions if action.kind is kind]

        first, end = s == 0, s == num_stages - 1
        assert messages(RECV_A) == messages(SEND_G) == ([] if first else everything)
        assert messages(SEND_A) == messages(RECV_G) == ([] if end else everything)
        # A message goes out right after what made it, and comes in right before its use.
        for before, after in itertools.pairwise(actions):
            if before.kind is RECV_A:
                assert after == Action(F, before.index)
            if before.kind is RECV_G:
                assert after == Action(B, before.index)
            if after.kind is SEND_A:
                assert before == Action(F, after.index)
            if after.kind is SEND_G:
                assert before == Action(B, after.index)


def test_1f1b_by_hand() -> None:
    """PipeDream-Flush with four micro-batches on three stages."""
    stages = pipeline_actions(line(3, 4))
    assert compute(stages[0]) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert compute(stages[1]) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert compute(stages[2]) == "F0 B0 F1 B1 F2 B2 F3 B3"


def test_gpipe_by_hand() -> None:
    for actions in pipeline_actions(line(2, 3, "gpipe")):
        assert compute(actions) == "F0 F1 F2 B0 B1 B2"


def test_fewer_micro_batches_than_stages() -> None:
    stages = pipeline_actions(line(4, 2))
    assert [compute(actions) for actions in stages] == [*["F0 F1 B0 B1"] * 3, "F0 B0 F1 B1"]


def test_one_stage_sends_nothing() -> None:
    (actions,) = pipeline_actions(line(1, 2))
    assert actions == (Action(F, 0), Action(B, 0), Action(F, 1), Action(B, 1))


def test_in_flight() -> None:
    assert [max_in_flight(line(4, 9), s) for s in range(4)] == [4, 3, 2, 1]
    assert [max_in_flight(line(4, 2), s) for s in range(4)] == [2, 2, 2, 1]
    assert [max_in_flight(line(4, 9, "gpipe"), s) for s in range(4)] == [9, 9, 9, 9]


def unlike() -> Plan:
    """Six layers: cut 2 + 4 in one pipeline, 3 + 3 in the other."""
    return plan_of(
        make_pipeline(("here/a/0/0", 0, 2), ("here/a/0/1", 2, 6)),
        make_pipeline(("here/b/0/0", 0, 3), ("here/b/0/1", 3, 6)),
    )


def test_one_pipeline_sums_nothing() -> None:
    assert gradient_groups(plan_of(line(3, 2))) == ()


def test_unequal_cuts_make_a_group_of_each_overlap() -> None:
    assert gradient_groups(unlike()) == (
        GradientGroup((3, 4, 5), ((0, 1), (1, 1))),
        GradientGroup((0, 1), ((0, 0), (1, 0))),  # has no stage in common with the first
        GradientGroup((2,), ((0, 1), (1, 0))),
    )


@given(
    st.lists(st.lists(st.integers(1, 39), unique=True, max_size=12), min_size=1, max_size=6),
)
def test_interleaved_borders_chain_no_sums(cuts: list[list[int]]) -> None:
    """Every sum of equal length begins after no more others than share a stage with it."""
    edges = [[0, *sorted(cut), 40] for cut in cuts]
    holders = [
        [(p, bisect.bisect(mine, layer)) for p, mine in enumerate(edges)] for layer in range(40)
    ]
    turns = in_turn(holders, [1.0] * 40)
    assert sorted(turns) == list(range(40))
    free: dict[tuple[int, int], int] = {}
    for layer in turns:
        start = max(free.get(lane, 0) for lane in holders[layer])
        sharing = sum(bool(set(holders[layer]) & set(other)) for other in holders) - 1
        assert start <= sharing
        free |= dict.fromkeys(holders[layer], start + 1)


def test_a_tied_matrix_is_summed_over_both_its_ends() -> None:
    groups = gradient_groups(unlike(), tied=(0, 5))
    assert GradientGroup((0,), ((0, 0), (0, 1), (1, 0), (1, 1))) in groups
    assert GradientGroup((1,), ((0, 0), (1, 0))) in groups
    counts = Counter(layer for group in groups for layer in group.layers)
    assert counts == dict.fromkeys(range(6), 1)


def test_a_tied_matrix_is_summed_inside_one_pipeline_too() -> None:
    assert gradient_groups(plan_of(line(3, 2)), tied=(0, 2)) == (
        GradientGroup((0,), ((0, 0), (0, 2))),
    )
    assert gradient_groups(plan_of(line(1, 2)), tied=(0, 0)) == ()


def test_every_stage_ends_with_its_sums_in_order_and_a_step() -> None:
    plan = unlike()
    groups = gradient_groups(plan, tied=(0, 5))
    for p, stages in enumerate(plan_actions(plan, groups)):
        for s, actions in enumerate(stages):
            reduces = [a.index for a in actions if a.kind is ActionKind.REDUCE]
            assert reduces == [g for g, group in enumerate(groups) if (p, s) in group.holders]
            assert actions[-1] == Action(ActionKind.STEP)
            assert all(a.kind is ActionKind.REDUCE for a in actions[-1 - len(reduces) : -1])


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_an_action_reads_in_the_record_of_a_run(schedule: str) -> None:
    assert str(pipeline_actions(line(2, 1, schedule))[1][0]) == "recv_activation:0"
