"""Curves over the steps of a run: the loss, and the tokens per second."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from pluribus.core.units import format_count
from pluribus.dashboard import svg
from pluribus.spec.run import StepEvent

WIDTH, HEIGHT = 510.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 30.0, 52.0

# More points than pixels add bytes, not shape.
MAX_POINTS = 1000
MAX_TOOLTIPS = 60

Point = tuple[float, float]


def loss_chart(steps: Sequence[StepEvent]) -> str:
    """Loss against steps as SVG; steps whose loss is not finite are left out.

    Args:
        steps: at least one with a finite loss.
    """
    points = thin([(step.step, step.loss) for step in steps if math.isfinite(step.loss)])
    values = [value for _, value in points]
    low, high = svg.nice_range(min(values), max(values), 8)
    frame = _Frame(points, low, high, "loss, nats per token")
    body = [*frame.draw(steps[0].tokens), *frame.curve("curve loss", lambda v: f"{v:.3f}")]
    x, y = frame.x(points[-1][0]), frame.y(values[-1])
    body.append(svg.text(x, max(y - 10, TOP - 8), f"{values[-1]:.3f}", "strong halo", "end"))
    label = f"Loss from {values[0]:.3f} to {values[-1]:.3f} nats per token."
    return svg.figure(WIDTH, HEIGHT, label, body)


def throughput_chart(steps: Sequence[StepEvent], predicted: float | None) -> str:
    """Tokens per second against steps as SVG, with the predicted rate as a dashed line.

    Args:
        steps: at least one.
        predicted: tokens per second.
    """
    points = thin([(step.step, step.tokens_per_s) for step in steps])
    values = [value for _, value in points]
    _, high = svg.nice_range(0.0, max([*values, predicted or 0.0]), 8)
    frame = _Frame(points, 0.0, high, "tokens per second")
    body = [*frame.draw(steps[0].tokens), *frame.curve("curve rate", format_count)]
    label = f"Tokens per second, {format_count(statistics.median(values))} in the median step."
    if predicted is not None:
        y = frame.y(predicted)
        body.append(svg.line(LEFT, y, WIDTH - RIGHT, y, "predicted"))
        words = f"predicted {format_count(predicted)}"
        body.append(svg.text(WIDTH - RIGHT - 4, y - 7, words, "small muted halo", "end"))
        label += f" Predicted: {format_count(predicted)}."
    return svg.figure(WIDTH, HEIGHT, label, body)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: each the mean of as many neighbours as that takes."""
    size = math.ceil(len(points) / limit)
    chunks = (points[i : i + size] for i in range(0, len(points), size))
    return [
        (statistics.fmean(x for x, _ in chunk), statistics.fmean(y for _, y in chunk))
        for chunk in chunks
    ]


class _Frame:
    """The axes of a curve over steps, with tokens as a second label."""

    def __init__(self, points: Sequence[Point], low: float, high: float, title: str) -> None:
        self.points = points
        self.title = title
        first, last = points[0][0], points[-1][0]
        self.x = svg.Scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT)
        self.y = svg.Scale(low, high, HEIGHT - BOTTOM, TOP)

    def draw(self, tokens_per_step: int) -> list[str]:
        body = [svg.text(0, 14, self.title, "small strong")]
        for tick in svg.ticks(self.y.low, self.y.high, 8):
            y = self.y(tick)
            words = format_count(tick) if abs(tick) >= 1000 else f"{tick:g}"
            body.append(svg.line(LEFT, y, WIDTH - RIGHT, y, "grid"))
            body.append(svg.text(LEFT - 8, y + 4, words, "small muted", "end"))
        bottom = HEIGHT - BOTTOM
        body.append(svg.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
        for tick in svg.ticks(self.x.low, self.x.high, 5, whole=True):
            x = self.x(tick)
            body.append(svg.line(x, bottom, x, bottom + 5, "axis"))
            body.append(svg.text(x, bottom + 20, f"{tick:.0f}", "small muted", "middle"))
            tokens = format_count(tick * tokens_per_step)
            body.append(svg.text(x, bottom + 38, tokens, "small faint", "middle"))
        body.append(svg.text(0, bottom + 20, "step", "small muted"))
        body.append(svg.text(0, bottom + 38, "tokens", "small faint"))
        return body

    def curve(self, css: str, show: Callable[[float], str]) -> list[str]:
        placed = [(self.x(x), self.y(y)) for x, y in self.points]
        body = [svg.polyline(placed, css)]
        if len(placed) <= MAX_TOOLTIPS:
            body += [
                svg.circle(px, py, 3, f"dot {css.split()[-1]}", f"step {x:g}: {show(y)}")
                for (px, py), (x, y) in zip(placed, self.points, strict=True)
            ]
        return body
