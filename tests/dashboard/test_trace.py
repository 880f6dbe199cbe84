"""The trace holds every span, in microseconds, under names a viewer can show."""

import json

import pytest

from pluribus.dashboard.trace import MEASURED, PREDICTED, chrome_trace
from pluribus.dashboard.write import write_report


def events(trace, phase, process):
    return [e for e in trace["traceEvents"] if e["ph"] == phase and e["pid"] == process]


def test_predicted_events_are_the_spans(demo):
    drawn = events(chrome_trace(demo), "X", PREDICTED)
    spans = [span for lane in demo.predicted.lanes.values() for span in lane]
    assert len(drawn) == len(spans)
    for event, span in zip(drawn, spans, strict=True):
        assert event["ts"] == pytest.approx(span.start * 1e6)
        assert event["dur"] == pytest.approx((span.end - span.start) * 1e6)
        assert event["cat"] == span.action.kind


def test_measured_events_are_the_actions(demo):
    drawn = events(chrome_trace(demo), "X", MEASURED)
    found = {(e["tid"], e["cat"], e["args"].get("micro_batch", 0)): e for e in drawn}
    assert len(found) == len(demo.measured.actions)
    for time in demo.measured.actions:
        event = found[time.rank, time.action, time.micro_batch]
        assert event["ts"] == pytest.approx(time.start * 1e6)
        assert event["dur"] == pytest.approx((time.end - time.start) * 1e6)


def test_every_thread_has_a_name(unlike):
    trace = chrome_trace(unlike)
    for process in (PREDICTED, MEASURED):
        named = {
            e["tid"]: e["args"]["name"]
            for e in events(trace, "M", process)
            if e["name"] == "thread_name"
        }
        assert set(named) == set(range(224))
        assert len(set(named.values())) == 224


def test_arrows_follow_the_messages(demo):
    trace = chrome_trace(demo)
    starts = {e["id"]: e for e in events(trace, "s", PREDICTED)}
    finishes = {e["id"]: e for e in events(trace, "f", PREDICTED)}
    assert starts.keys() == finishes.keys()
    # 8 activations forwards and 8 gradients back.
    hops = [(starts[i]["name"], starts[i]["tid"], finishes[i]["tid"]) for i in starts]
    assert sorted(hops) == [("activation", 0, 1)] * 8 + [("gradient", 1, 0)] * 8
    assert all(starts[i]["ts"] < finishes[i]["ts"] for i in starts)
    slices = events(trace, "X", PREDICTED)
    for end in (*starts.values(), *finishes.values()):
        assert any(
            s["tid"] == end["tid"] and s["ts"] < end["ts"] < s["ts"] + s["dur"] for s in slices
        )


def test_files_are_written_beside_each_other(demo, tmp_path):
    page, trace = write_report(tmp_path / "run", demo)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "report.html",
        "trace.json",
    ]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(trace.read_text(encoding="utf-8"))["displayTimeUnit"] == "ms"
