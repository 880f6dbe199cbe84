"""The predicted and the measured step in the Chrome Trace Event format.

Perfetto and chrome://tracing read it; times are microseconds. The format: "Trace Event Format",
Google, 2016 (events "M" metadata, "X" complete, "s" and "f" flow start and finish).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pluribus.dashboard.names import lane_of_rank, layers_labels, spans_of_ranks, stage_label
from pluribus.dashboard.report import ReportData
from pluribus.predict.schedule import ActionKind
from pluribus.predict.timeline import Lane, Span

PREDICTED, MEASURED = 1, 2  # process ids

_MICROSECONDS = 1e6
_NEXT = {ActionKind.FORWARD: 1, ActionKind.BACKWARD: -1}

Event = dict[str, Any]


def chrome_trace(data: ReportData) -> dict[str, Any]:
    """Both timelines, every stage of them.

    A thread is a stage in the process "predicted", a rank in the process "measured". An arrow
    leads from each forward to that of the next stage, and from each backward to that of the
    stage before: the messages themselves may take no time, and an arrow needs slices to join.
    """
    plan = data.plan
    events: list[Event] = []
    ranks = lane_of_rank(plan)
    if data.predicted is not None:
        lanes = tuple(data.predicted.lanes)
        events += _process(PREDICTED, "predicted")
        for thread, lane in enumerate(lanes):
            stage = plan.pipelines[lane[0]].stages[lane[1]]
            layers = layers_labels(data.layer_kinds, stage.layers)[0]
            name = f"{stage_label(plan, lane)}: {layers}, {stage.pool}"
            events += _thread(PREDICTED, thread, name, data.predicted.lanes[lane])
        events += _arrows(data.predicted.lanes, {lane: i for i, lane in enumerate(lanes)})
    if data.measured is not None:
        events += _process(MEASURED, f"measured (step {data.measured.step})")
        chips = plan.chips
        for rank, spans in spans_of_ranks(data.measured).items():
            name = f"{stage_label(plan, ranks[rank])}: rank {rank}, {chips[rank]}"
            events += _thread(MEASURED, rank, name, spans)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": data.title, "model": data.model_name, "plan": plan.digest},
    }


def _process(process: int, name: str) -> Iterator[Event]:
    yield _metadata("process_name", process, 0, {"name": name})
    yield _metadata("process_sort_index", process, 0, {"sort_index": process})


def _thread(process: int, thread: int, name: str, spans: Sequence[Span]) -> Iterator[Event]:
    yield _metadata("thread_name", process, thread, {"name": name})
    yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})
    for span in spans:
        kind = span.action.kind
        key = "group" if kind is ActionKind.REDUCE else "micro_batch"
        yield {
            "name": kind.value.replace("_", " "),
            "cat": kind.value,
            "ph": "X",
            "pid": process,
            "tid": thread,
            "ts": span.start * _MICROSECONDS,
            "dur": span.seconds * _MICROSECONDS,
            "args": {} if kind is ActionKind.STEP else {key: span.action.index},
        }


def _metadata(name: str, process: int, thread: int, args: dict[str, Any]) -> Event:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": args}


def _arrows(lanes: Mapping[Lane, Sequence[Span]], threads: Mapping[Lane, int]) -> Iterator[Event]:
    computes = {
        (lane, span.action): span
        for lane, spans in lanes.items()
        for span in spans
        if span.action.kind in _NEXT
    }
    number = 0
    for (lane, action), span in computes.items():
        target = (lane[0], lane[1] + _NEXT[action.kind])
        arrival = computes.get((target, action))
        if arrival is None:
            continue
        number += 1
        name = "activation" if action.kind is ActionKind.FORWARD else "gradient"
        ends = (("s", lane, span), ("f", target, arrival))
        for phase, at, inside in ends:
            # An event binds to the slice around it, so it is put well inside.
            middle = (inside.start + inside.end) / 2 * _MICROSECONDS
            event = {
                "name": name, "cat": "message", "ph": phase, "id": number,
                "pid": PREDICTED, "tid": threads[at], "ts": middle,
            }  # fmt: skip
            yield {**event, "bp": "e"} if phase == "f" else event
