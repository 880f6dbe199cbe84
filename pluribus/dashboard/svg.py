"""SVG by hand: escaped elements, linear scales, and tick marks at round numbers.

Colours and strokes are classes of the page's style sheet, so that a figure follows its light or
dark theme; only geometry is written into the elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal

# Average advance of letters and digits in the widest common sans-serif face (DejaVu Sans), in
# font sizes: what fits there fits everywhere.
_ADVANCE, _ADVANCE_BOLD = 0.6, 0.68

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly onto the pixels [start, end]; start may be the larger."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_step(span: float, target: int) -> float:
    """The smallest 1, 2, 2.5 or 5 × 10^k that cuts `span` into at most `target` parts."""
    rough = span / target
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, target: int = 6, *, whole: bool = False) -> tuple[float, ...]:
    """Round numbers inside [low, high], about `target` of them.

    Args:
        low, high: the range; low < high.
        target: the number of parts aimed at, never exceeded.
        whole: only whole numbers, for axes that count.
    """
    step = nice_step(high - low, target)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding takes away what adding up binary fractions leaves, such as 0.30000000000000004.
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def nice_range(low: float, high: float, target: int = 5) -> tuple[float, float]:
    """[low, high] widened to round numbers; a single value gets room on both sides."""
    if low == high:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    step = nice_step(high - low, target)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def num(value: float) -> str:
    """A coordinate with at most two decimals and no needless zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def fits(text: str, width: float, size: float, *, bold: bool = False) -> bool:
    """Whether `text` at this font size is expected to fit `width` pixels."""
    return len(text) * size * (_ADVANCE_BOLD if bold else _ADVANCE) <= width


def figure(width: float, height: float, label: str, body: Iterable[str]) -> str:
    """A whole picture; `label` is what a screen reader says in its place."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {num(width)} {num(height)}" '
        f'width="{num(width)}" height="{num(height)}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def group(x: float, y: float, body: Iterable[str], tooltip: str = "") -> str:
    """Elements moved by (x, y), with one tooltip for all of them."""
    return f'<g transform="translate({num(x)} {num(y)})">{_title(tooltip)}{"".join(body)}</g>'


def rect(
    x: float, y: float, width: float, height: float, css: str, tooltip: str = "", radius: float = 0
) -> str:
    """A box."""
    corner = f' rx="{num(radius)}"' if radius else ""
    head = (
        f'<rect class="{css}" x="{num(x)}" y="{num(y)}" width="{num(width)}" '
        f'height="{num(height)}"{corner}'
    )
    return f"{head}>{_title(tooltip)}</rect>" if tooltip else f"{head}/>"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{num(x1)}" y1="{num(y1)}" x2="{num(x2)}" y2="{num(y2)}"/>'


def polyline(points: Iterable[tuple[float, float]], css: str) -> str:
    """An open line through points."""
    path = " ".join(f"{num(x)},{num(y)}" for x, y in points)
    return f'<polyline class="{css}" points="{path}"/>'


def circle(x: float, y: float, radius: float, css: str, tooltip: str = "") -> str:
    """A dot."""
    head = f'<circle class="{css}" cx="{num(x)}" cy="{num(y)}" r="{num(radius)}"'
    return f"{head}>{_title(tooltip)}</circle>" if tooltip else f"{head}/>"


def text(x: float, y: float, words: str, css: str = "", anchor: Anchor = "start") -> str:
    """A line of text on the baseline y; nothing for no words."""
    if not words:
        return ""
    style = f' class="{css}"' if css else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{style} x="{num(x)}" y="{num(y)}"{place}>{escape(words)}</text>'


def _title(tooltip: str) -> str:
    return f"<title>{escape(tooltip)}</title>" if tooltip else ""
