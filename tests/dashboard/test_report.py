"""The page as a reader's browser gets it: well-formed, offline, complete, escaped."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from pluribus.dashboard.report import render_report
from pluribus.spec.run import StepEvent, StepTimeline

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert('&\"')</script>"


class StackCheck(HTMLParser):
    """Fails on a tag that closes another than the last opened; keeps all text."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(page: str) -> StackCheck:
    parser = StackCheck()
    parser.feed(page)
    parser.close()
    assert parser.stack == []
    for picture in pictures(page):
        ElementTree.fromstring(picture)
    links = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|url\(|@import|<link|<script|src=", links)
    assert not re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE)
    return parser


def pictures(page: str) -> list[str]:
    return re.findall(r"<svg xmlns.*?</svg>", page, re.DOTALL)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.mark.parametrize("name", ["demo", "large", "unlike"])
def test_page_is_well_formed_offline_and_small(name, request):
    page = render_report(request.getfixturevalue(name))
    check(page)
    assert len(page.encode()) < 1_500_000
    for picture in pictures(page):
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_the_whole_page_of_a_measured_run(demo):
    page = render_report(demo)
    assert headings(page) == [
        "The plan",
        "Against the chips alone",
        "One step",
        "The run",
        "Why this plan",
    ]
    lead = re.search(r'<p class="lead">(.*?)</p>', page)[1].replace("\u00a0", " ")
    plan, even = demo.comparison.row("plan"), demo.comparison.row("even")
    alone = sum(row.tokens_per_s for row in demo.comparison.rows if row.role == "alone")
    assert f"{plan.tokens_per_s / alone:.1%}".replace("%", " %") in lead
    assert f"{plan.tokens_per_s / even.tokens_per_s:.2f} ×" in lead
    assert f"{demo.steps[-1].loss:.3f} nats" in lead
    assert "200 steps in 21.4 s" in page


def test_an_unrun_plan_claims_nothing_measured(demo):
    page = render_report(replace(demo, measured=None, steps=(), comparison=None))
    check(page)
    assert headings(page) == ["The plan", "One step", "Why this plan"]
    assert "measured" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()


def test_a_plan_without_prediction_is_still_a_picture(demo):
    bare = replace(demo.plan, prediction=None, alternatives=(), explanation=())
    data = replace(demo, plan=bare, predicted=None, measured=None, steps=(), comparison=None)
    page = render_report(data)
    check(page)
    assert headings(page) == ["The plan"]
    assert 'class="lead"' not in page


def test_empty_measurements_are_left_out(demo):
    page = render_report(replace(demo, measured=StepTimeline(step=1, actions=()), steps=()))
    check(page)
    assert "Measured, step" not in page


def test_a_loss_that_is_not_finite_is_named_and_not_drawn(demo):
    broken = replace(demo.steps[-1], step=201, loss=math.nan)
    page = render_report(replace(demo, steps=(*demo.steps, broken)))
    check(page)
    assert "In 1 of 201 steps it was not a finite number." in page
    assert "After step 200 the loss" in page


def test_a_single_step_has_curves(demo):
    step = StepEvent(
        step=1, loss=3.0, seconds=0.5, tokens=4096, gradient_norm=1.0, learning_rate=1e-3
    )
    check(render_report(replace(demo, steps=(step,))))


def test_every_word_of_the_user_is_escaped(demo):
    plan = replace(
        demo.plan,
        explanation=(HOSTILE,),
        alternatives=(replace(demo.plan.alternatives[0], name=HOSTILE, note=HOSTILE),),
    )
    chip = {**plan.cluster["pool"][0]["chip"], "name": HOSTILE}
    pools = [{**plan.cluster["pool"][0], "chip": chip}, *plan.cluster["pool"][1:]]
    comparison = replace(
        demo.comparison,
        rows=tuple(replace(row, name=HOSTILE) for row in demo.comparison.rows),
    )
    data = replace(
        demo,
        title=HOSTILE,
        model_name=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        comparison=comparison,
        plan=replace(plan, cluster={**plan.cluster, "pool": pools}),
    )
    parser = check(render_report(data))
    assert "script" not in parser.tags
    assert "".join(parser.text).count(HOSTILE) > 8


def test_many_rows_are_folded(unlike):
    page = render_report(unlike)
    assert "<details><summary>Predicted memory" in page
