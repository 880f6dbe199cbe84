"""What each stage does in a step, predicted above measured, on one time axis.

A picture of few actions has a box and a tooltip for each. Above `MAX_BOXES` actions, boxes would
be thinner than a pixel and the page too large: each pixel column then takes the kind of action
that fills most of it, and runs of like columns become one box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pluribus.core.units import format_seconds
from pluribus.dashboard import svg
from pluribus.dashboard.names import alike, lanes_end, pool_names, stage_label
from pluribus.predict.schedule import ActionKind
from pluribus.predict.timeline import Lane, Span
from pluribus.spec.plan import Plan

WIDTH = 1040.0
GUTTER = 170.0
RIGHT = 34.0
MAX_LANES = 16
MAX_BOXES = 5000

Lanes = Mapping[Lane, Sequence[Span]]

# Style class of each kind; also the order of the legend.
ACTION_CLASS = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward",
    ActionKind.RECV_ACTIVATION: "wait",
    ActionKind.RECV_GRADIENT: "wait",
    ActionKind.SEND_ACTIVATION: "wait",
    ActionKind.SEND_GRADIENT: "wait",
    ActionKind.REDUCE: "reduce",
    ActionKind.STEP: "optimizer",
}
LEGEND = (
    ("forward", "forward"),
    ("backward", "backward"),
    ("wait", "waiting for a message"),
    ("reduce", "gradient sum"),
    ("optimizer", "optimizer"),
)
_WORDS = {
    ActionKind.FORWARD: "forward, micro-batch {}",
    ActionKind.BACKWARD: "backward, micro-batch {}",
    ActionKind.RECV_ACTIVATION: "waiting for the activation of micro-batch {}",
    ActionKind.RECV_GRADIENT: "waiting for the gradient of micro-batch {}",
    ActionKind.SEND_ACTIVATION: "sending the activation of micro-batch {}",
    ActionKind.SEND_GRADIENT: "sending the gradient of micro-batch {}",
    ActionKind.REDUCE: "gradient sum of group {}",
    ActionKind.STEP: "optimizer",
}


def drawn_lanes(plan: Plan, limit: int = MAX_LANES) -> tuple[Lane, ...]:
    """The stages to draw: whole pipelines, unlike ones first, while they fit; at least one.

    Where everything fits, every pipeline is drawn, in order.
    """
    lanes = tuple((p, s) for p, s, _ in plan.stages)
    if len(lanes) <= limit:
        return lanes
    drawn: list[Lane] = []
    for members in alike(plan):
        own = [(members[0], s) for s in range(len(plan.pipelines[members[0]].stages))]
        if drawn and len(drawn) + len(own) > limit:
            continue
        drawn += own[:limit]
    return tuple(drawn)


def gantt(plan: Plan, panels: Sequence[tuple[str, Lanes]]) -> str:
    """The figure as SVG.

    Args:
        plan: whose stages are drawn.
        panels: (heading, spans of each stage), top to bottom; at least one.
    """
    lanes = drawn_lanes(plan)
    end = max(lanes_end(spans) for _, spans in panels)
    scale = svg.Scale(0.0, end, GUTTER, WIDTH - RIGHT)
    lane_height, gap = (26.0, 5.0) if len(lanes) <= 8 else (18.0, 3.0)
    num_boxes = sum(len(spans.get(lane, ())) for _, spans in panels for lane in lanes)
    painter = _columns if num_boxes > MAX_BOXES else _boxes

    pools = pool_names(plan)
    body: list[str] = []
    y = 0.0
    for heading, spans in panels:
        body.append(svg.text(0, y + 15, heading, "strong"))
        y += 26
        top = y
        for lane in lanes:
            colour = pools[plan.pipelines[lane[0]].stages[lane[1]].pool].colour % 8
            row = [
                svg.rect(0, 0, 6, lane_height, f"band pool-{colour}"),
                svg.text(14, lane_height / 2 + 4, stage_label(plan, lane), "small"),
                svg.rect(GUTTER, 0, scale.end - GUTTER, lane_height, "lane"),
                *painter(spans.get(lane, ()), scale, lane_height),
            ]
            body.append(svg.group(0, y, row, _lane_tooltip(plan, lane, spans.get(lane, ()))))
            y += lane_height + gap
        finish = lanes_end(spans)
        x = scale(finish)
        body.append(svg.line(x, top - 6, x, y - gap + 6, "marker"))
        body.append(svg.text(x, top - 11, format_seconds(finish), "strong", "end"))
        y += 12
    body += _time_axis(scale, y - 4)
    label = f"What {len(lanes)} stages do in a step, over {format_seconds(end)}."
    return svg.figure(WIDTH, y + 22, label, body)


def _boxes(spans: Sequence[Span], scale: svg.Scale, height: float) -> list[str]:
    body = []
    for span in spans:
        x, width = scale(span.start), scale(span.end) - scale(span.start)
        if width < 0.05:
            continue
        kind, index = span.action.kind, span.action.index
        took = f"{format_seconds(span.seconds)} from {format_seconds(span.start)}"
        tooltip = f"{_WORDS[kind].format(index)}\n{took}"
        body.append(svg.rect(x, 0, width, height, ACTION_CLASS[kind], tooltip))
        compute = kind in (ActionKind.FORWARD, ActionKind.BACKWARD)
        if compute and svg.fits(str(index), width - 3, 10):
            css = f"index on-{ACTION_CLASS[kind]}"
            body.append(svg.text(x + width / 2, height / 2 + 3.5, str(index), css, "middle"))
    return body


def _columns(spans: Sequence[Span], scale: svg.Scale, height: float) -> list[str]:
    first, last = int(scale.start), int(scale.end)
    filled: list[dict[str, float]] = [{} for _ in range(first, last + 1)]
    for span in spans:
        left, right = scale(span.start), scale(span.end)
        css = ACTION_CLASS[span.action.kind]
        for column in range(int(left), min(int(right), last) + 1):
            overlap = min(right, column + 1) - max(left, column)
            here = filled[column - first]
            here[css] = here.get(css, 0.0) + max(overlap, 0.0)
    kinds = [max(here, key=lambda css: here[css]) if here else "" for here in filled]
    body = []
    start = 0
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[start]:
            if kinds[start]:
                body.append(svg.rect(first + start, 0, i - start, height, kinds[start]))
            start = i
    return body


def _lane_tooltip(plan: Plan, lane: Lane, spans: Sequence[Span]) -> str:
    seconds: dict[str, float] = {}
    for span in spans:
        css = ACTION_CLASS[span.action.kind]
        seconds[css] = seconds.get(css, 0.0) + span.seconds
    rows = [f"{words}: {format_seconds(seconds[css])}" for css, words in LEGEND if css in seconds]
    return "\n".join([stage_label(plan, lane), *rows])


def time_unit(end: float) -> tuple[float, str]:
    """(units in a second, symbol) that keeps an axis up to `end` seconds in small numbers."""
    for factor, symbol in ((1.0, "s"), (1e3, "ms")):
        if end * factor >= 2:
            return factor, symbol
    return 1e6, "µs"


def _time_axis(scale: svg.Scale, y: float) -> list[str]:
    factor, symbol = time_unit(scale.high)
    body = [svg.line(scale.start, y, scale.end, y, "axis")]
    for tick in svg.ticks(0.0, scale.high * factor, 10):
        x = scale(tick / factor)
        body.append(svg.line(x, y, x, y + 5, "axis"))
        body.append(svg.text(x, y + 20, f"{tick:g}", "small muted", "middle"))
    body.append(svg.text(scale.end + 16, y + 20, symbol, "small muted"))
    return body
