"""Broken plans: each law, broken by itself, gets one message that names place and value."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from pluribus.core.errors import PlanError
from pluribus.plan.validate import Law, check, require_valid
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan, Stage

from ..small import make_chip, make_job, make_model, make_plan, make_pool, make_setting


@pytest.fixture(scope="module")
def setting() -> Setting:
    old = make_chip("old", precisions=("fp32",))
    pools = [
        make_pool("a", nodes=2, chips_per_node=4),
        make_pool("b", make_chip("tight", gib=2.2), nodes=2, chips_per_node=2),
        make_pool("c", old),
    ]
    return make_setting(pools, make_model(blocks=4, hidden=512), make_job(batch=8))


@pytest.fixture(scope="module")
def plan(setting: Setting) -> Plan:
    """Two pipelines: two stages of two chips, and one stage of one."""
    first = Pipeline(
        stages=(
            Stage(chips=("here/a/0/0", "here/a/0/1"), layers=(0, 4), tensor_parallel=2),
            Stage(chips=("here/a/1/0", "here/a/1/1"), layers=(4, 6), tensor_parallel=2),
        ),
        micro_batch_size=1,
        micro_batches=5,
    )
    second = Pipeline(
        stages=(Stage(chips=("here/a/0/2",), layers=(0, 6)),), micro_batch_size=1, micro_batches=3
    )
    return make_plan(setting, first, second)


def with_stage(plan: Plan, p: int, s: int, **changes: object) -> Plan:
    pipeline = plan.pipelines[p]
    stages = list(pipeline.stages)
    stages[s] = replace(stages[s], **changes)
    return with_pipeline(plan, p, stages=tuple(stages))


def with_pipeline(plan: Plan, p: int, **changes: object) -> Plan:
    pipelines = list(plan.pipelines)
    pipelines[p] = replace(pipelines[p], **changes)
    return replace(plan, pipelines=tuple(pipelines))


def test_a_valid_plan_breaks_no_law(plan: Plan, setting: Setting) -> None:
    assert check(plan, setting) == []
    require_valid(plan, setting)


@pytest.mark.parametrize(
    ("broken", "law", "words"),
    [
        # Metis drops the last layer of 547 of its 1,124 published plans…
        (lambda p: with_stage(p, 0, 1, layers=(4, 5)), Law.LAYERS,
         r"pipelines\[0\]: layers \[5, 6\] are in no stage"),
        # … and 988 of them hold an empty stage.
        (lambda p: with_stage(p, 0, 1, layers=(4, 4)), Law.LAYERS,
         r"pipelines\[0\].stages\[1\]: holds no layer: \[4, 4\]"),
        (lambda p: with_stage(p, 0, 1, layers=(3, 6)), Law.LAYERS,
         r"layers \[3, 4\] are in two stages"),
        (lambda p: with_stage(p, 0, 0, layers=(1, 4)), Law.LAYERS,
         r"layers \[0, 1\] are in no stage"),
        (lambda p: with_stage(p, 0, 1, layers=(4, 9)), Law.LAYERS,
         r"layers \[4, 9\] of a model of 6"),
        (lambda p: with_stage(p, 0, 1, layers=(6, 4)), Law.LAYERS, "of a model of 6"),
        # Malleus reads the stages of ten and more in the order of their names: 0, 1, 10, 2, …
        (lambda p: with_pipeline(p, 0, stages=p.pipelines[0].stages[::-1]), Law.LAYERS,
         "out of order"),
        (lambda p: with_pipeline(p, 0, stages=()), Law.LAYERS, "has no stage"),
        (lambda p: with_pipeline(p, 0, micro_batches=4), Law.BATCH,
         "together they take 7 sequences a step, the job's global batch is 8"),
        (lambda p: with_pipeline(p, 0, micro_batches=0), Law.BATCH, "micro_batches is 0"),
        (lambda p: with_stage(p, 1, 0, chips=("here/a/0/0",)), Law.CHIPS,
         r"chip here/a/0/0 is used also by pipelines\[0\].stages\[0\]"),
        (lambda p: with_stage(p, 0, 0, chips=("here/a/0/0", "here/a/0/0")), Law.CHIPS,
         "used twice"),
        (lambda p: with_stage(p, 1, 0, chips=("here/a/7/0",)), Law.CHIPS,
         "the cluster has no chip 'here/a/7/0'"),
        (lambda p: with_stage(p, 1, 0, chips=("nowhere",)), Law.CHIPS, "no pool"),
        (lambda p: with_stage(p, 0, 0, chips=("here/a/0/0", "here/b/0/0")), Law.CHIPS,
         "two pools, here/a and here/b"),
        (lambda p: with_stage(p, 0, 0, chips=("here/a/0/0", "here/a/1/2")), Law.CHIPS,
         "a tensor-parallel group leaves its node: here/a/0/0, here/a/1/2"),
        (lambda p: with_stage(p, 1, 0, chips=("here/c/0/0",)), Law.CHIPS, "old has no bf16"),
        (lambda p: with_stage(p, 1, 0, chips=()), Law.SHARING, "0 chips are no multiple"),
        (lambda p: with_stage(p, 1, 0, tensor_parallel=2), Law.SHARING,
         "1 chips are no multiple of tensor parallel 2"),
        (lambda p: with_stage(p, 1, 0, tensor_parallel=0), Law.SHARING, "tensor_parallel is 0"),
        # FlagScale starts degrees that heads and experts do not divide by.
        (lambda p: with_stage(p, 1, 0, tensor_parallel=3,
                              chips=("here/a/0/2", "here/a/0/3", "here/a/1/3")), Law.SHARING,
         "does not divide by tensor parallel 3"),
        (lambda p: with_stage(p, 1, 0, expert_parallel=2), Law.SHARING,
         "expert parallel 2 does not divide data × tensor parallel 1 × 1"),
        (lambda p: with_stage(p, 1, 0, context_parallel=3,
                              chips=("here/a/0/2", "here/a/0/3", "here/a/1/3")), Law.SHARING,
         "sequences of 128 tokens do not divide by context parallel 3"),
        (lambda p: with_stage(p, 1, 0, zero=4), Law.SHARING, "zero is 4, not 0 to 3"),
        (lambda p: with_stage(p, 1, 0, chips=("here/b/0/0",)), Law.MEMORY,
         r"pipelines\[1\].stages\[0\]: needs [\d.]+ GiB on each tight, which has 2.1 GiB"),
    ],
)  # fmt: skip
def test_each_law(
    plan: Plan, setting: Setting, broken: Callable[[Plan], Plan], law: Law, words: str
) -> None:
    bad = broken(plan)
    assert law in {violation.law for violation in check(bad, setting)}
    with pytest.raises(PlanError, match=words) as caught:
        require_valid(bad, setting)
    assert caught.value.where == "plan.json"
    if law is Law.MEMORY:
        require_valid(bad, setting, memory=False)


def test_memory_counts_the_position_in_the_schedule(setting: Setting) -> None:
    """Sailor and Metis count a stage's activations once; under 1F1B the first of four stages
    holds four micro-batches and the last one: the same stage fits at the end only."""
    pool = make_pool("a", make_chip("tight", gib=2.5), nodes=4)
    model = make_model(blocks=6, hidden=512)
    tight = make_setting([pool], model, make_job(8, sequence=2048))

    def over(*ends: int) -> list[str]:
        """Where it does not fit when the stages end at these layers."""
        stages = tuple(
            Stage(chips=(f"here/a/{i}/0",), layers=run)
            for i, run in enumerate(itertools.pairwise([0, *ends]))
        )
        plan = make_plan(tight, Pipeline(stages=stages, micro_batch_size=1, micro_batches=8))
        found = check(plan, tight)
        assert all(violation.law is Law.MEMORY for violation in found)
        return [violation.where for violation in found]

    assert over(2, 3, 4, 8) == []
    assert over(5, 6, 7, 8) == ["pipelines[0].stages[0]"]


def test_interleaved_stages_are_read_chunk_by_chunk(setting: Setting) -> None:
    def plan(*chunks: tuple[tuple[int, int], ...]) -> Plan:
        stages = tuple(
            Stage(chips=(f"here/a/0/{s}",), layers=runs[0], chunks=runs)
            for s, runs in enumerate(chunks)
        )
        pipeline = Pipeline(
            stages=stages, micro_batch_size=1, micro_batches=8, schedule="interleaved",
            virtual_stages=2,
        )  # fmt: skip
        return make_plan(setting, pipeline)

    assert check(plan(((0, 2), (3, 4)), ((2, 3), (4, 6))), setting) == []
    assert check(plan(((0, 2), (2, 4)), ((4, 5), (5, 6))), setting)
    vee = plan(((0, 2), (4, 6)), ((2, 3), (3, 4)))
    assert check(vee, setting)  # the second chunk runs back from the last stage only in ZBV
    (pipeline,) = vee.pipelines
    back = replace(vee, pipelines=(replace(pipeline, schedule="zbv"),))
    assert check(back, setting) == []


def test_many_violations_are_counted(plan: Plan, setting: Setting) -> None:
    bad = replace(plan, pipelines=tuple(replace(p, micro_batches=0) for p in plan.pipelines * 3))
    with pytest.raises(PlanError, match=r"; and \d+ more"):
        require_valid(bad, setting)
