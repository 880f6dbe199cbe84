"""The front between time and money as one page: a picture, and a table with what each step costs.

Like the report it opens offline, fetches nothing, and follows the reader's light or dark theme.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from pluribus.core.units import format_seconds
from pluribus.dashboard import svg
from pluribus.dashboard.names import NBSP
from pluribus.dashboard.tables import table
from pluribus.spec.plan import Plan

WIDTH, HEIGHT = 1040.0, 430.0
LEFT, RIGHT, TOP, BOTTOM = 78.0, 40.0, 34.0, 50.0

_LABEL_GAP = 22.0  # labels nearer than this to one before are left out
_UNITS = (("days", 86400.0, 3 * 86400.0), ("hours", 3600.0, 2 * 3600.0), ("minutes", 60.0, 120.0))


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A plan as a point.

    Attributes:
        seconds: of the whole job.
        money: of the whole job, in the cluster's currency.
        chips: which chips it uses, e.g. ``64 of 64 a800, 0 of 32 h20``.
        name: how it uses them.
        front: whether no other plan is both quicker and cheaper.
    """

    seconds: float
    money: float
    chips: str
    name: str
    front: bool = True


def front_points(plans: Sequence[Plan], num_steps: int) -> tuple[FrontPoint, ...]:
    """The plans of a front, and beside them the alternatives that were weighed and lost.

    Args:
        plans: with predictions, quickest first.
        num_steps: of the job.
    """
    points, taken = [], set()
    for plan in plans:
        assert plan.prediction is not None
        seconds, money = plan.prediction.step_seconds.mid, plan.prediction.money_per_step
        name = next((row.name for row in plan.alternatives if row.chosen), "")
        points.append(
            FrontPoint(
                seconds=seconds * num_steps, money=money * num_steps,
                chips=_chips(plan), name=name,
            )
        )  # fmt: skip
        taken.add(_key(seconds, money))
    for plan in plans:
        for row in plan.alternatives:
            key = _key(row.step_seconds, row.money_per_step)
            if key not in taken:
                taken.add(key)
                points.append(
                    FrontPoint(
                        seconds=row.step_seconds * num_steps,
                        money=row.money_per_step * num_steps,
                        chips="", name=row.name, front=False,
                    )
                )  # fmt: skip
    return tuple(points)


def pareto_page(title: str, points: Sequence[FrontPoint]) -> str:
    """The whole page.

    Args:
        title: heading.
        points: at least one on the front; those of the front quickest first.
    """
    front = [point for point in points if point.front]
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    caption = (
        "Each large dot is the cheapest plan for its time; along the line one buys time with "
        "money. Small dots are plans that were weighed and are beaten by one on the line."
    )
    picture = pareto_chart(points)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(_lead(front))}</p>\n'
        f"</header>\n<section>\n<h2>Time against money</h2>\n<figure>{picture}"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n</section>\n"
        f"<section>\n<h2>The plans of the front</h2>\n{_table(front)}\n</section>\n"
        "</main>\n</body>\n</html>\n"
    )


def pareto_chart(points: Sequence[FrontPoint]) -> str:
    """The figure as SVG."""
    front = [point for point in points if point.front]
    name, unit = _unit(front[-1].seconds)
    # Plans far off the front would squeeze it into a corner: they sit at the edge of the picture.
    far = front[-1].seconds * 1.25, front[0].money * 1.25
    shown = [p for p in points if p.front or (p.seconds <= far[0] and p.money <= far[1])]
    times = [point.seconds / unit for point in shown]
    money = [point.money for point in shown]
    x = svg.Scale(*svg.nice_range(min(times), max(times), 8), LEFT, WIDTH - RIGHT)
    y = svg.Scale(*svg.nice_range(min(money), max(money), 6), HEIGHT - BOTTOM, TOP)
    body = [*_axes(x, y, name)]
    placed = [(x(point.seconds / unit), y(point.money)) for point in front]
    body.append(svg.polyline(_stairs(placed), "curve front"))
    for point, px, py in ((p, x(p.seconds / unit), y(p.money)) for p in shown if not p.front):
        body.append(svg.circle(px, py, 3.5, "dot beaten", _tooltip(point)))
    last = None
    for i, (point, (px, py)) in enumerate(zip(front, placed, strict=True)):
        body.append(svg.circle(px, py, 6.5, "dot front", _tooltip(point)))
        near = last is not None and abs(px - last[0]) < 120 and abs(py - last[1]) < _LABEL_GAP
        if not near or i == len(front) - 1:
            last = (px, py)
            body.append(_label(point, i, len(front), px, py))
    hidden = len(points) - len(shown)
    if hidden:
        words = f"{hidden} more beyond this picture"
        body.append(svg.text(WIDTH - RIGHT, TOP - 6, words, "small faint", "end"))
    label = (
        f"{len(front)} plans from {_amount(front[0].money)} in {format_seconds(front[0].seconds)} "
        f"to {_amount(front[-1].money)} in {format_seconds(front[-1].seconds)}."
    )
    return svg.figure(WIDTH, HEIGHT, label, body)


def _axes(x: svg.Scale, y: svg.Scale, unit: str) -> Iterable[str]:
    bottom = HEIGHT - BOTTOM
    yield svg.text(0, 16, "money for the whole job", "small strong")
    for tick in svg.ticks(y.low, y.high, 6):
        yield svg.line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
        yield svg.text(LEFT - 10, y(tick) + 4, _amount(tick), "small muted", "end")
    yield svg.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    for tick in svg.ticks(x.low, x.high, 8):
        yield svg.line(x(tick), bottom, x(tick), bottom + 5, "axis")
        yield svg.text(x(tick), bottom + 21, f"{tick:g}", "small muted", "middle")
    yield svg.text(WIDTH - RIGHT, bottom + 41, f"{unit} for the whole job", "small strong", "end")


def _stairs(placed: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Until the next plan is quick enough, the one before it stays the cheapest."""
    path = [placed[0]]
    for (_, before), (px, py) in itertools.pairwise(placed):
        path += [(px, before), (px, py)]
    return path


def _label(point: FrontPoint, index: int, count: int, px: float, py: float) -> str:
    words = f"{format_seconds(point.seconds)}, {_amount(point.money)}"
    if index == 0 and count > 1:
        words = "quickest: " + words
    elif index == count - 1:
        words = ("cheapest: " if count > 1 else "quickest and cheapest: ") + words
    # To the right of its dot, above the stairs; the last ones would leave the picture.
    if px > WIDTH - RIGHT - 210:
        return svg.text(px - 4, py + 24, words, "small halo", "end")
    return svg.text(px + 11, py - 9, words, "small halo")


def _table(front: Sequence[FrontPoint]) -> str:
    rows = []
    for i, point in enumerate(front):
        saved = ""
        if i + 1 < len(front):
            after = front[i + 1]
            hours = (after.seconds - point.seconds) / 3600
            saved = _amount((point.money - after.money) / hours) if hours > 0 else ""
        rows.append(
            [point.chips, point.name, format_seconds(point.seconds), _amount(point.money), saved]
        )
    columns = ("chips used", "plan", "time", "money", "per hour saved")
    caption = (
        "Quickest first. Per hour saved: what an hour less costs, against the next cheaper plan."
    )
    return table(caption, columns, rows, words=2)


def _lead(front: Sequence[FrontPoint]) -> str:
    first, last = front[0], front[-1]
    if len(front) == 1:
        return (
            f"One plan is both the quickest and the cheapest: {format_seconds(first.seconds)} "
            f"for {_amount(first.money)}."
        )
    longer = last.seconds / first.seconds
    less = 1 - last.money / first.money
    return (
        f"The quickest plan takes {format_seconds(first.seconds)} and costs "
        f"{_amount(first.money)}. The cheapest takes {longer:.2f} × as long and saves "
        f"{less:.0%} of the money."
    )


def _chips(plan: Plan) -> str:
    used: dict[str, int] = {}
    for _, _, stage in plan.stages:
        used[stage.pool] = used.get(stage.pool, 0) + len(stage.chips)
    parts = []
    for pool in plan.cluster["pool"]:
        address = pool["address"]
        total = pool["nodes"] * pool["chips_per_node"]
        if address in used:
            parts.append(f"{used[address]} of {total} {address.rpartition('/')[2]}")
    return ", ".join(parts)


def _unit(seconds: float) -> tuple[str, float]:
    """The unit of the time axis, and its seconds."""
    return next(((name, unit) for name, unit, least in _UNITS if seconds >= least), ("seconds", 1))


def _amount(money: float) -> str:
    digits = 0 if abs(money) >= 100 else 2
    return f"{money:,.{digits}f}".replace(",", NBSP)


def _tooltip(point: FrontPoint) -> str:
    lines = [f"{format_seconds(point.seconds)}, {_amount(point.money)}", point.chips, point.name]
    return "\n".join(line for line in lines if line)


def _key(seconds: float, money: float) -> tuple[str, str]:
    return f"{seconds:.6g}", f"{money:.6g}"
