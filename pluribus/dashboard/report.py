"""The report: one HTML page that opens offline, with everything known of a plan or a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from pluribus.core.units import format_count
from pluribus.dashboard.charts import loss_chart, throughput_chart
from pluribus.dashboard.gantt import LEGEND, MAX_LANES, drawn_lanes, gantt
from pluribus.dashboard.names import measured_lanes, percent, pool_names
from pluribus.dashboard.plan_picture import plan_picture
from pluribus.dashboard.summary import Summary, sentences, summarise, tiles
from pluribus.dashboard.tables import (
    alternatives_table,
    breakdown_table,
    comparison_table,
    memory_table,
)
from pluribus.predict.timeline import Timeline
from pluribus.spec.job import Job
from pluribus.spec.plan import Plan
from pluribus.spec.run import Comparison, StepEvent, StepTimeline


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report shows. Only the plan is needed; what is absent is left out of the page.

    Attributes:
        title: heading of the page.
        plan: with its prediction, alternatives and explanation, where it carries them.
        layer_kinds: of each of the model's layers: "embedding", "dense", "moe" or "head".
        model_name: what to call the model.
        num_parameters: of the model.
        predicted: the plan's timeline of one step.
        measured: what the ranks did in one step.
        steps: of the run so far, in order.
        comparison: the plan beside each chip alone and the even split, measured.
        facts: further (label, value) pairs.
    """

    title: str
    plan: Plan
    layer_kinds: tuple[str, ...]
    model_name: str
    num_parameters: int
    predicted: Timeline | None
    measured: StepTimeline | None
    steps: tuple[StepEvent, ...]
    comparison: Comparison | None
    facts: tuple[tuple[str, str], ...] = ()


def render_report(data: ReportData) -> str:
    """The whole page; it fetches nothing."""
    summary = summarise(len(data.plan.chips), data.plan.prediction, data.comparison, data.steps)
    sections = (
        _head(data, summary),
        _plan_section(data),
        _comparison_section(data),
        _gantt_section(data),
        _curves_section(data),
        _planner_section(data),
    )
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(data.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _head(data: ReportData, summary: Summary) -> str:
    numbers = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in tiles(summary)
    )
    facts = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in (*_facts(data), *data.facts)
    )
    lead = " ".join(sentences(summary))
    return (
        f"<header>\n<h1>{escape(data.title)}</h1>\n"
        + (f'<p class="lead">{escape(lead)}</p>\n' if lead else "")
        + (f'<dl class="tiles">{numbers}</dl>\n' if numbers else "")
        + f'<dl class="facts">{facts}</dl>\n</header>\n'
    )


def _facts(data: ReportData) -> list[tuple[str, str]]:
    plan, prediction = data.plan, data.plan.prediction
    train = Job.from_table(plan.job, file="plan.json [job]").train
    chips = ", ".join(f"{pool.num_chips} × {pool.chip}" for pool in pool_names(plan).values())
    facts = [
        ("Model", f"{data.model_name}, {format_count(data.num_parameters)} parameters"),
        ("Chips", chips),
        (
            "Global batch",
            f"{plan.global_batch} sequences × {train.sequence_length} tokens, {train.precision}",
        ),
        ("Plan", plan.digest),
    ]
    if prediction is not None and prediction.mfu is not None:
        facts.append(("Predicted model FLOP/s", f"{percent(prediction.mfu, 1)} of peak"))
    if prediction is not None and prediction.money_per_step:
        facts.append(
            (
                "Predicted cost",
                f"{prediction.money_per_step:.4g} per step, in the cluster file's currency",
            )
        )
    return facts


def _plan_section(data: ReportData) -> str:
    pools = "".join(
        f'<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect '
        f'class="band pool-{pool.colour % 8}" width="12" height="12"/></svg>'
        f"{escape(pool.chip)} <span>{escape(pool.address)}, {pool.num_chips} "
        f"chip{'s' if pool.num_chips > 1 else ''}</span></li>"
        for pool in pool_names(data.plan).values()
    )
    caption = "A box is a stage, as wide as its share of the layers."
    if data.plan.prediction is not None:
        caption += " In it: chip, layers, predicted busy share and memory used."
    return _section(
        "The plan",
        f'<ul class="legend">{pools}</ul>',
        _figure(plan_picture(data.plan, data.layer_kinds), caption),
    )


def _comparison_section(data: ReportData) -> str:
    if data.comparison is None or not data.comparison.rows:
        return ""
    return _section("Against the chips alone", comparison_table(data.comparison))


def _gantt_section(data: ReportData) -> str:
    plan = data.plan
    breakdown = plan.prediction.breakdown if plan.prediction is not None else None
    panels = []
    if data.predicted is not None:
        panels.append(("Predicted", data.predicted.lanes))
    measured = None
    if data.measured is not None and data.measured.actions:
        measured = measured_lanes(plan, data.measured)
        panels.append((f"Measured, step {data.measured.step}", measured))
    parts = []
    if panels:
        caption = "Each row is a stage, from the start of the step. Numbers are micro-batches."
        num_stages, drawn = sum(1 for _ in plan.stages), len(drawn_lanes(plan, MAX_LANES))
        if drawn < num_stages:
            caption += f" {num_stages - drawn} more of the {num_stages} stages are in trace.json."
        if measured is not None and len(plan.chips) > num_stages:
            caption += " Measured is the first chip of each stage."
        kinds = "".join(
            f'<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">'
            f'<rect class="{css}" width="12" height="12"/></svg>{words}</li>'
            for css, words in LEGEND
        )
        parts += [f'<ul class="legend">{kinds}</ul>', _figure(gantt(plan, panels), caption)]
    if breakdown is not None or measured is not None:
        parts.append(breakdown_table(plan, breakdown, measured))
    return _section("One step", *parts) if parts else ""


def _curves_section(data: ReportData) -> str:
    if not data.steps:
        return ""
    predicted = data.plan.prediction.tokens_per_s if data.plan.prediction is not None else None
    figures = []
    lost = sum(not math.isfinite(step.loss) for step in data.steps)
    if lost < len(data.steps):
        caption = "Training loss: mean cross entropy of each global batch."
        if lost:
            caption += f" In {lost} of {len(data.steps)} steps it was not a finite number."
        figures.append(_figure(loss_chart(data.steps), caption))
    caption = "Throughput of each step."
    figures.append(_figure(throughput_chart(data.steps, predicted), caption))
    return _section("The run", f'<div class="pair">{"".join(figures)}</div>')


def _planner_section(data: ReportData) -> str:
    plan = data.plan
    parts = []
    if plan.explanation:
        lines = "".join(f"<li>{escape(line)}</li>" for line in plan.explanation)
        parts.append(f'<ul class="explanation">{lines}</ul>')
    if plan.alternatives:
        parts.append(alternatives_table(plan.alternatives))
    if plan.prediction is not None:
        parts.append(memory_table(plan, data.layer_kinds))
    return _section("Why this plan", *parts) if parts else ""


def _section(heading: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{''.join(_lines(parts))}</section>\n"


def _lines(parts: Sequence[str]) -> list[str]:
    return [f"{part}\n" for part in parts]


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
