"""Interleaved and zero-bubble schedules: valid, within their memory, with the papers' bubbles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.core.errors import PlanError
from pluribus.core.schema import from_table, to_table
from pluribus.predict.schedule import (
    Action,
    ActionKind,
    Structure,
    gradient_groups,
    in_flight,
    max_in_flight,
    passes,
    pipeline_actions,
)
from pluribus.predict.timeline import Durations, Timeline, simulate
from pluribus.spec.plan import Pipeline, Plan, Stage

F, B = ActionKind.FORWARD, ActionKind.BACKWARD
I, W = ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT  # noqa: E741
SPLIT = ("zb-h1", "zb-h2", "zbv")


def line(
    stages: int,
    micro_batches: int,
    schedule: str,
    chunks: int = 1,
    pass_times: tuple[float, float, float, float] = (1, 1, 1, 0),
) -> Pipeline:
    """One layer in every chunk."""
    chunks = 2 if schedule == "zbv" else chunks
    shape = Structure(schedule, stages, micro_batches, chunks, pass_times).placement
    rows = []
    for s in range(stages):
        ranges = tuple((u, u + 1) for u in (shape.virtual(s, c) for c in range(chunks)))
        rows.append(
            Stage(chips=(f"here/a/0/{s}",), layers=ranges[0], chunks=ranges if chunks > 1 else ())
        )
    return Pipeline(
        stages=tuple(rows), micro_batch_size=1, micro_batches=micro_batches, schedule=schedule,
        virtual_stages=chunks, pass_times=pass_times,
    )  # fmt: skip


def timed(
    pipeline: Pipeline, forward: float, backward: float, weight: float, message: float = 0.0
) -> Timeline:
    """Times of a whole stage's pass, shared out evenly over its chunks."""
    parts = pipeline.virtual_stages
    whole = {F: forward, B: backward + weight, I: backward, W: weight}
    compute = {
        ((0, s), kind): (seconds / parts,) * parts
        for s in range(len(pipeline.stages))
        for kind, seconds in whole.items()
    }
    lists = {(0, s): actions for s, actions in enumerate(pipeline_actions(pipeline))}
    return simulate(lists, Durations(compute, lambda a, b: message, ()))


def bubble_rate(timeline: Timeline, busy: float) -> float:
    """Of the stage that takes longest, first pass to last (Qi et al. 2023 §5.3)."""
    longest = 0.0
    for spans in timeline.lanes.values():
        own = [span for span in spans if span.action.kind in (F, B, I, W)]
        longest = max(longest, own[-1].end - own[0].start)
    return 1 - busy / longest


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "interleaved", *SPLIT]))
    stages = draw(st.integers(1, 6))
    chunks = draw(st.integers(1, 4)) if schedule == "interleaved" else 1
    micro_batches = draw(st.integers(1, 12))
    if schedule == "interleaved":
        micro_batches = stages * draw(st.integers(1, 3))
    times = tuple(draw(st.integers(1, 4)) for _ in range(3))
    return line(stages, micro_batches, schedule, chunks, (*times, draw(st.integers(0, 2))))


@settings(max_examples=150, deadline=None)
@given(pipeline=pipelines())
def test_every_chunk_does_every_pass_once_and_the_lists_can_run(pipeline: Pipeline) -> None:
    micro_batches, chunks = pipeline.micro_batches, pipeline.virtual_stages
    kinds = (F, I, W) if pipeline.schedule in SPLIT else (F, B)
    for s, actions in enumerate(pipeline_actions(pipeline)):
        own = [a for a in actions if a.kind in (F, B, I, W)]
        expected = {Action(k, m, c) for k in kinds for m in range(micro_batches)
                    for c in range(chunks)}  # fmt: skip
        assert len(own) == len(expected)
        assert set(own) == expected
        seen: set[Action] = set()
        held = most = 0
        for action in own:
            for k in kinds[: kinds.index(action.kind)]:
                assert replace(action, kind=k) in seen
            seen.add(action)
            held += {kinds[0]: 1, kinds[-1]: -1}.get(action.kind, 0)
            most = max(most, held)
        assert most / chunks == max_in_flight(pipeline, s)
    timed(pipeline, 3, 2, 1, 0.5)  # asserts that nothing deadlocks
    sent, received = list(messages(pipeline, "send")), list(messages(pipeline, "recv"))
    assert len(set(sent)) == len(sent)
    assert sorted(sent) == sorted(received)


def messages(pipeline: Pipeline, way: str) -> Iterator[tuple]:
    """(from, to, what, micro-batch, chunk) of each message as one side names it."""
    for s, actions in enumerate(pipeline_actions(pipeline)):
        for a in actions:
            verb, _, what = a.kind.value.partition("_")
            if verb == way:
                ends = (s, a.peer(s)) if way == "send" else (a.peer(s), s)
                assert 0 <= a.peer(s) < len(pipeline.stages)
                assert a.peer(s) != s
                yield (*ends, what, a.index, a.chunk)


def shown(actions: tuple[Action, ...]) -> str:
    letter = {F: "F", B: "B", I: "B", W: "W"}
    return " ".join(
        f"{letter[a.kind]}{a.index}{'abc'[a.chunk]}" for a in actions if a.kind in letter
    )


def test_interleaved_by_hand() -> None:
    """Narayanan et al. 2021 (arXiv 2104.04473), figure 4 in small: two stages of two chunks."""
    first, last = pipeline_actions(line(2, 4, "interleaved", chunks=2))
    assert shown(first) == "F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a B2b B3b B2a B3a"
    assert shown(last) == "F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a"


def test_zero_bubble_by_hand() -> None:
    """Qi et al. 2023, figure 3: the first and last of four stages, eight micro-batches."""
    h1 = [shown(actions).replace("a", "") for actions in pipeline_actions(line(4, 8, "zb-h1"))]
    assert h1[0].startswith("F0 F1 F2 F3 B0 W0 F4 B1 W1 F5")
    assert h1[3].startswith("F0 B0 F1 B1 F2 B2 F3 B3 W0 F4 B4 W1")
    h2 = [shown(actions).replace("a", "") for actions in pipeline_actions(line(4, 8, "zb-h2"))]
    assert h2[0].startswith("F0 F1 F2 F3 F4 F5 F6 B0 W0 F7 B1 W1 B2 W2")
    assert h2[3].startswith("F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 W0 F7 B7 W1")


def test_a_chunk_hands_on_inside_its_stage_without_a_message() -> None:
    """At the turn of a V the last stage keeps the hidden state."""
    actions = pipeline_actions(line(2, 4, "zbv"))[1]
    sends = [a for a in actions if a.kind is ActionKind.SEND_ACTIVATION]
    assert {(a.chunk, a.hop) for a in sends} == {(1, -1)}
    first = pipeline_actions(line(2, 4, "interleaved", chunks=2))[0]
    wrapped = {(a.chunk, a.hop) for a in first if a.kind is ActionKind.RECV_ACTIVATION}
    assert wrapped == {(0, -1)}


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_bubbles_of_equal_stages_are_those_of_the_theory(stages: int) -> None:
    """Qi et al. 2023 table 2, Narayanan et al. 2021 §2.2, per stage from first to last pass."""
    f, b, w, m = 2.0, 2.0, 2.0, 4 * stages
    busy, lost = m * (f + b + w), (stages - 1) * (f + b + w)

    def bubble(schedule: str, *times: float, chunks: int = 1) -> float:
        timeline = timed(line(stages, m, schedule, chunks), *times)
        total = m * sum(times)
        return total / (1 - bubble_rate(timeline, total)) - total

    assert bubble("1f1b", f, b, w) == pytest.approx(lost)
    assert bubble("gpipe", f, b, w) == pytest.approx(lost)
    assert bubble("interleaved", f, b, w, chunks=2) == pytest.approx(lost / 2)
    assert bubble("interleaved", f, b, w, chunks=4) == pytest.approx(lost / 4)
    assert bubble("zb-h1", f, b, w) == pytest.approx((stages - 1) * (f + b - w))
    assert bubble("zb-h1", 3, 2.5, 1.5) == pytest.approx((stages - 1) * 4)
    assert bubble("zb-h2", f, b, w) == pytest.approx(0, abs=1e-9)
    assert bubble("zb-h2", 3, 2.5, 1.5) == pytest.approx((stages - 1) * 2.5)
    assert bubble("zbv", f, b, w) == pytest.approx(0, abs=1e-9)
    assert timed(line(stages, m, "1f1b"), f, b, w).end == pytest.approx(busy + lost)


# Qi et al. 2023 (arXiv 2401.10241): stages, micro-batches, chunks if interleaved; table 6: f, b,
# w and a message, in ms; table 5: 1F1B, 1F1B-I, ZB-H1 (= ZB-1p), ZB-H2, ZB-2p.
PUBLISHED = [
    (8, 24, 3, (18.522, 18.086, 9.337, 0.601), (0.2431, 0.1055, 0.1585, 0.1083, 0.0433)),
    (8, 32, 3, (18.513, 18.086, 9.331, 0.626), (0.1985, 0.0818, 0.1242, 0.0837, 0.0039)),
    (8, 64, 3, (18.546, 18.097, 9.321, 0.762), (0.1240, 0.0443, 0.0674, 0.0444, 0.0026)),
    (8, 24, 4, (29.718, 29.444, 19.927, 0.527), (0.2347, 0.0808, 0.1323, 0.0698, 0.0029)),
    (8, 64, 4, (29.935, 29.621, 19.388, 0.535), (0.1091, 0.0320, 0.0554, 0.0294, 0.0010)),
    (16, 48, 3, (11.347, 11.248, 8.132, 0.377), (0.2552, 0.1104, 0.1397, 0.0672, 0.0066)),
    (16, 64, 3, (11.307, 11.254, 8.101, 0.379), (0.2082, 0.0852, 0.1088, 0.0516, 0.0054)),
    (16, 128, 3, (11.325, 11.308, 8.109, 0.378), (0.1251, 0.0445, 0.0576, 0.0266, 0.0028)),
    (32, 96, 2, (10.419, 10.207, 7.715, 0.408), (0.2646, 0.1493, 0.1421, 0.0641, 0.0038)),
]


@pytest.mark.parametrize(("stages", "micro_batches", "chunks", "times", "rates"), PUBLISHED)
def test_bubble_rates_of_the_zero_bubble_paper(
    stages: int,
    micro_batches: int,
    chunks: int,
    times: tuple[float, float, float, float],
    rates: tuple[float, ...],
) -> None:
    candidates = [
        (line(stages, micro_batches, "1f1b"), 0.0001),
        (line(stages, micro_batches, "interleaved", chunks), 0.005),
        (line(stages, micro_batches, "zb-h1"), 0.0001),
        (line(stages, micro_batches, "zb-h2"), 0.0001),
        (line(stages, micro_batches, "zb-h2", pass_times=times), 0.01),
    ]
    for (pipeline, within), rate in zip(candidates, rates, strict=True):
        timeline = timed(pipeline, *times)
        found = bubble_rate(timeline, micro_batches * sum(times[:3]))
        assert found == pytest.approx(rate, abs=within), pipeline.schedule


def test_in_flight() -> None:
    def held(*arguments: object) -> list[float]:
        pipeline = line(*arguments)
        return [max_in_flight(pipeline, s) for s in range(4)]

    # Warm-up of 2(S − 1 − s) + (v − 1)S chunks and one more, over v = 2 chunks.
    assert held(4, 8, "interleaved", 2) == [5.5, 4.5, 3.5, 2.5]
    # Forward to gradient of the input: S − s and 2(S − s) − 1; the rest waits for its weights.
    assert held(4, 12, "zb-h1") == [4, 4, 4, 4]
    assert held(4, 12, "zb-h2") == [7, 7, 7, 7]
    assert held(4, 12, "zbv") == [4, 4, 4, 4]
    for schedule, expected in (("zb-h1", [4, 3, 2, 1]), ("zb-h2", [7, 5, 3, 1])):
        order = passes(Structure.of(line(4, 12, schedule)))
        assert [until(actions, I) for actions in order] == expected


def until(actions: tuple[Action, ...], last: ActionKind) -> int:
    """Most micro-batches between their forward and their pass of this kind."""
    held = most = 0
    for action in actions:
        held += {F: 1, last: -1}.get(action.kind, 0)
        most = max(most, held)
    return most


def test_layers_of_every_chunk_are_summed_by_who_holds_them() -> None:
    """A V on two stages beside two plain stages."""
    plain = Pipeline(
        stages=(Stage(chips=("here/b/0/0",), layers=(0, 2)),
                Stage(chips=("here/b/0/1",), layers=(2, 4))),
        micro_batch_size=1, micro_batches=4,
    )  # fmt: skip
    plan = Plan(
        pipelines=(line(2, 4, "zbv"), plain), job={}, job_digest="", cluster={},
        cluster_digest="", model_config={},
    )  # fmt: skip
    groups = gradient_groups(plan)
    assert {g.layers: g.holders for g in groups} == {
        (0,): ((0, 0), (1, 0)),
        (1,): ((0, 1), (1, 0)),
        (2,): ((0, 1), (1, 1)),
        (3,): ((0, 0), (1, 1)),
    }
    # Embedding and head on the same stage of a V: their shared matrix needs no sum there.
    alone = replace(plan, pipelines=plan.pipelines[:1])
    assert gradient_groups(alone, tied=(0, 3)) == ()
    assert plan.pipelines[0].stages[0].num_layers == 2


def test_a_chunked_pipeline_survives_its_table() -> None:
    pipeline = line(2, 4, "zb-h2", pass_times=(3.0, 2.5, 1.5, 0.25))
    assert from_table(Pipeline, to_table(pipeline), file="plan.json") == pipeline
    assert from_table(Pipeline, to_table(line(2, 4, "zbv")), file="plan.json") == line(2, 4, "zbv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "zbv"}, "ZBV with 1 virtual stages"),
        ({"virtual_stages": 2}, "1f1b with 2 virtual stages"),
        ({"schedule": "interleaved", "virtual_stages": 2}, "another number of chunks"),
        ({"schedule": "interleaved", "micro_batches": 3}, "3 micro-batches over 2"),
        ({"schedule": "zb-h2", "pass_times": (1.0, 1.0, 0.0, 0.0)}, "pass times"),
    ],
)
def test_pipelines_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(line(2, 4, "1f1b"), **change)


def test_the_layers_of_a_stage_are_those_of_its_first_chunk() -> None:
    with pytest.raises(PlanError, match="first chunk"):
        Stage(chips=("here/a/0/0",), layers=(0, 2), chunks=((0, 1), (3, 4)))


@pytest.mark.parametrize(
    ("schedule", "chunks"), [("interleaved", 3), ("zb-h1", 1), ("zb-h2", 1), ("zbv", 2)]
)
def test_a_long_run_holds_what_a_full_pipeline_holds(schedule: str, chunks: int) -> None:
    """More micro-batches than it takes to fill a pipeline are not counted one by one."""
    times = (1.0, 1.3, 0.7, 0.2) if schedule == "zb-h2" else (1.0, 1.0, 1.0, 0.0)
    structure = Structure(schedule, 4, 120, chunks, times)
    long = replace(structure, micro_batches=120_000_000)
    for stage, order in enumerate(passes(structure)):
        held = most = 0
        for action in order:
            held += action.kind is F
            held -= action.kind in (B, W)
            most = max(most, held)
        assert in_flight(long, stage) == most / chunks
