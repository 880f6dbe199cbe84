"""Geometry of the figures: what is drawn where."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.dashboard import charts, gantt, svg
from pluribus.dashboard.names import alike, layers_labels, measured_lanes, ranges
from pluribus.dashboard.plan_picture import plan_picture
from pluribus.predict.schedule import ActionKind
from pluribus.spec.run import ActionTime, StepTimeline

NS = "{http://www.w3.org/2000/svg}"


def elements(picture: str, tag: str, css: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(picture).iter(NS + tag)
    return [item for item in found if css in item.get("class", "").split()]


def texts(picture: str) -> list[str]:
    return [item.text for item in ElementTree.fromstring(picture).iter(NS + "text")]


def test_a_stage_is_as_wide_as_its_layers(demo):
    boxes = elements(plan_picture(demo.plan, demo.layer_kinds), "rect", "stage")
    widths = [float(box.get("width")) for box in boxes]
    assert widths[0] / widths[1] == pytest.approx(7 / 3)
    assert sum(widths) == pytest.approx(gantt.WIDTH - gantt.GUTTER)


def test_the_demo_stage_says_who_and_what(demo):
    words = texts(plan_picture(demo.plan, demo.layer_kinds))
    assert {"Xeon cores with AMX", "here/amx/0/0", "embedding + blocks 0–5"} <= set(words)
    assert "blocks 6–7 + head" in words
    assert "8 micro-batches" in words


def test_like_pipelines_share_a_row(large, unlike):
    picture = plan_picture(large.plan, large.layer_kinds)
    assert len(elements(picture, "rect", "stage")) == 2 * 14
    assert "× 8, 14 chips each" in texts(picture)
    assert "Pipelines 9–16" in texts(picture)
    rows = alike(unlike.plan)
    assert sorted(index for members in rows for index in members) == list(range(16))
    picture = plan_picture(unlike.plan, unlike.layer_kinds)
    assert len(elements(picture, "rect", "stage")) == len(rows) * 14


@pytest.mark.parametrize("name", ["demo", "large", "unlike"])
def test_text_stays_inside_its_box(name, request):
    data = request.getfixturevalue(name)
    root = ElementTree.fromstring(plan_picture(data.plan, data.layer_kinds))
    for item in root.iter(NS + "g"):
        box = item.find(f"{NS}rect[@class]")
        if box is None or "stage" not in box.get("class", "").split():
            continue
        for words in item.findall(NS + "text"):
            bold = "strong" in words.get("class", "")
            room = float(box.get("width")) - float(words.get("x"))
            assert svg.fits(words.text, room, 13 if bold else 11.5, bold=bold)


def test_memory_beyond_capacity_is_marked(demo):
    stages = demo.plan.prediction.stages[0]
    full = replace(stages[0], memory=replace(stages[0].memory, capacity=1e9))
    prediction = replace(demo.plan.prediction, stages=((full, stages[1]),))
    picture = plan_picture(replace(demo.plan, prediction=prediction), demo.layer_kinds)
    assert len(elements(picture, "rect", "over")) == 1


def test_layers_have_names():
    kinds = ("embedding", "dense", "moe", "moe", "head")
    assert layers_labels(kinds, (0, 1)) == ("embedding", "emb", "emb")
    assert layers_labels(kinds, (0, 3)) == ("embedding + blocks 0–1", "emb + 0–1", "0–1")
    assert layers_labels(kinds, (2, 5)) == ("blocks 1–2 + head", "1–2 + head", "1–2")
    assert layers_labels(kinds, (1, 2))[0] == "block 0"
    assert ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"


def test_gantt_boxes_are_the_spans_on_one_axis(demo):
    measured = measured_lanes(demo.plan, demo.measured)
    panels = (("Predicted", demo.predicted.lanes), ("Measured", measured))
    picture = gantt.gantt(demo.plan, panels)
    end = max(span.end for _, lanes in panels for spans in lanes.values() for span in spans)
    per_second = (gantt.WIDTH - gantt.GUTTER - gantt.RIGHT) / end
    drawn = [
        (float(box.get("x")), float(box.get("width")))
        for box in elements(picture, "rect", "forward")
    ]
    wanted = [
        (gantt.GUTTER + span.start * per_second, span.seconds * per_second)
        for _, lanes in panels
        for spans in lanes.values()
        for span in spans
        if span.action.kind is ActionKind.FORWARD
    ]
    assert drawn == [pytest.approx(pair, abs=0.01) for pair in wanted]
    box = elements(picture, "rect", "forward")[0]
    assert box.find(NS + "title").text.startswith("forward, micro-batch 0\n")


def test_gantt_of_a_large_plan_draws_few_lanes(large, demo):
    lanes = gantt.drawn_lanes(large.plan)
    assert lanes == tuple((0, s) for s in range(14))
    assert gantt.drawn_lanes(demo.plan) == ((0, 0), (0, 1))
    assert len(gantt.drawn_lanes(large.plan, 28)) == 28
    assert gantt.drawn_lanes(large.plan, 28)[14] == (8, 0)


def test_gantt_of_many_actions_keeps_the_time_of_each_kind(unlike, monkeypatch):
    monkeypatch.setattr(gantt, "MAX_BOXES", 10)
    lanes = unlike.predicted.lanes
    picture = gantt.gantt(unlike.plan, [("Predicted", lanes)])
    assert not elements(picture, "text", "index")
    per_second = (gantt.WIDTH - gantt.GUTTER - gantt.RIGHT) / max(
        spans[-1].end for spans in lanes.values()
    )
    drawn = sum(float(box.get("width")) for box in elements(picture, "rect", "reduce"))
    seconds = sum(unlike.predicted.seconds((0, s), ActionKind.REDUCE) for s in range(14))
    assert drawn == pytest.approx(seconds * per_second, rel=0.02)


def test_measured_ranks_find_their_stage(large):
    stage = replace(large.plan.pipelines[0].stages[0], chips=("wuhan/a800/0/0", "wuhan/a800/0/1"))
    other = replace(large.plan.pipelines[0].stages[1], chips=("wuhan/a800/0/2",))
    pipeline = replace(large.plan.pipelines[0], stages=(stage, other))
    plan = replace(large.plan, pipelines=(pipeline,))
    times = tuple(
        ActionTime(rank=rank, action="forward", micro_batch=rank, start=0.0, end=1.0)
        for rank in (2, 1, 0)
    )
    lanes = measured_lanes(plan, StepTimeline(step=1, actions=times))
    assert {lane: spans[0].action.index for lane, spans in lanes.items()} == {(0, 0): 0, (0, 1): 2}


def test_loss_points_lie_on_their_axes(demo):
    steps = demo.steps[:50]
    picture = charts.loss_chart(steps)
    (curve,) = elements(picture, "polyline", "loss")
    points = [tuple(map(float, pair.split(","))) for pair in curve.get("points").split()]
    assert len(points) == len(steps)

    # The axes say where a step and a loss belong, so the labels are checked with the points.
    labels = [
        (item.text, float(item.get("x")), float(item.get("y")))
        for item in elements(picture, "text", "muted")
        if re.fullmatch(r"[\d.]+", item.text)
    ]
    bottom = max(y for _, _, y in labels)
    across = [(float(text), x) for text, x, y in labels if y == bottom]
    upwards = [(float(text), y - 4) for text, _, y in labels if y < bottom]
    for (x, y), step in zip(points, steps, strict=True):
        assert x == pytest.approx(through(across, step.step), abs=0.02)
        assert y == pytest.approx(through(upwards, step.loss), abs=0.05)


def through(labels: list[tuple[float, float]], value: float) -> float:
    """Where the line through the first and the last label puts a value."""
    (low, start), (high, end) = labels[0], labels[-1]
    return start + (value - low) / (high - low) * (end - start)


def test_predicted_throughput_is_a_dashed_line(demo):
    picture = charts.throughput_chart(demo.steps, 8000.0)
    (dashed,) = elements(picture, "line", "predicted")
    assert dashed.get("y1") == dashed.get("y2")
    assert not elements(charts.throughput_chart(demo.steps, None), "line", "predicted")


def test_long_runs_are_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = charts.thin(points)
    assert len(thinned) == charts.MAX_POINTS
    assert thinned[0] == (4.5, 0.5)


@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1e-3, 1e6),
    target=st.integers(2, 12),
)
def test_ticks_are_round_and_few(low, span, target):
    marks = svg.ticks(low, low + span, target)
    assert len(marks) <= target + 1
    slack = span * 1e-6
    assert all(low - slack <= mark <= low + span + slack for mark in marks)
    bottom, top = svg.nice_range(low, low + span, target)
    assert bottom <= low + slack
    assert top >= low + span - slack


def test_ticks_by_example():
    assert svg.ticks(0, 1, 5) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert svg.ticks(1, 4, 6, whole=True) == (1.0, 2.0, 3.0, 4.0)
    assert svg.nice_range(2.13, 8.2, 8) == (2.0, 9.0)
