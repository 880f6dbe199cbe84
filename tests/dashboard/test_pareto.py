from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

from pluribus.dashboard.pareto import FrontPoint, front_points, pareto_chart, pareto_page
from pluribus.plan.front import pareto_front

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def point(hours: float, money: float, *, front: bool = True) -> FrontPoint:
    return FrontPoint(
        seconds=hours * 3600, money=money, chips="8 of 8 a", name="1 × [a <8> layers]", front=front
    )


POINTS = (
    point(10, 900), point(12, 700), point(20, 400), point(15, 800, front=False),
    point(300, 9000, front=False),
)  # fmt: skip


def test_the_stairs_hold_the_cheaper_price_until_the_next_plan_is_done() -> None:
    root = ElementTree.fromstring(pareto_chart(POINTS))
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.iter(f"{space}polyline")
    corners = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(corners) == 5
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        assert x1 == x2 or y1 == y2
    dots = list(root.iter(f"{space}circle"))
    assert sum(dot.attrib["class"] == "dot front" for dot in dots) == 3
    assert sum(dot.attrib["class"] == "dot beaten" for dot in dots) == 1  # the far one is counted
    words = " ".join(text.text or "" for text in root.iter(f"{space}text"))
    assert "quickest: 10 h 0 min" in words
    assert "cheapest: 20 h 0 min" in words
    assert "1 more beyond this picture" in words


def test_the_page_is_whole_and_escaped() -> None:
    page = pareto_page("A & B", POINTS)
    assert "<title>A &amp; B</title>" in page
    assert "&lt;8&gt; layers" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    # 200 for two hours, then 300 for eight.
    assert ">100<" in page
    assert ">37.50<" in page
    assert "2.00 × as long and saves 56% of the money" in page
    assert "both the quickest and the cheapest" in pareto_page("x", POINTS[:1])


def test_points_of_a_planned_front() -> None:
    pools = [
        make_pool("a", make_chip("dear", 4), nodes=2, price=9.0),
        make_pool("b", make_chip("cheap", 2), nodes=2, price=1.0),
    ]
    setting = make_setting(pools, make_model(blocks=6, hidden=512), make_job(16, sizes=(1,)))
    plans = pareto_front(setting, 3)
    points = front_points(plans, num_steps=100)
    front = [p for p in points if p.front]
    assert [p.seconds for p in front] == sorted(p.seconds for p in front)
    assert front[-1].chips == "2 of 2 b"
    assert any(not p.front for p in points)
    for p in points:
        if not p.front:
            assert p.chips == ""
    assert "<svg" in pareto_page("front", points)
