"""The numbers behind the pictures, as HTML tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pluribus.core.units import GIB, MIB, format_count, format_seconds
from pluribus.dashboard.names import (
    NBSP,
    alike,
    lanes_end,
    layers_labels,
    percent,
    pipelines_label,
    pool_names,
    stage_label,
)
from pluribus.predict.schedule import ActionKind
from pluribus.predict.timeline import Lane, Span
from pluribus.spec.plan import Plan
from pluribus.spec.prediction import Alternative, Breakdown
from pluribus.spec.run import Comparison, Measurement

# A longer table starts folded, so that the page stays readable.
MAX_OPEN_ROWS = 20
MAX_UNBROKEN = 24  # letters of a cell of words that stay on one line

_ROLES = {"alone": "alone", "even": "even split", "plan": "our plan"}
_COMPUTE = (ActionKind.FORWARD, ActionKind.BACKWARD)
_MESSAGES = (
    ActionKind.SEND_ACTIVATION,
    ActionKind.RECV_ACTIVATION,
    ActionKind.SEND_GRADIENT,
    ActionKind.RECV_GRADIENT,
)


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: int = 1,
    marked: int | None = None,
) -> str:
    """A table of escaped texts.

    Args:
        caption: what it shows.
        columns: headings.
        rows: cells, as many as columns; a cell of `meter` is markup already.
        words: leading columns of words, aligned left; the others are numbers, aligned right.
        marked: the row to set in bold.
    """

    def cell(tag: str, column: int, text: str) -> str:
        css = ' class="number"'
        if column < words:
            css = ' class="long"' if len(text) > MAX_UNBROKEN else ""
        scope = ' scope="col"' if tag == "th" else ""
        body = text if isinstance(text, _Markup) else escape(text)
        return f"<{tag}{scope}{css}>{body}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(columns))
    lines = []
    for index, row in enumerate(rows):
        css = ' class="chosen"' if index == marked else ""
        lines.append(f"<tr{css}>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>")
    inner = (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    if len(rows) <= MAX_OPEN_ROWS:
        return inner
    return f"<details><summary>{escape(caption)} ({len(rows)} rows)</summary>{inner}</details>"


def meter(share: float) -> str:
    """A share of one as a small bar with its percentage."""
    css = "fill over" if share > 1 else "fill"
    width = f"{min(share, 1) * 100:.1f}"
    return _Markup(
        f'<span class="bar" aria-hidden="true"><span class="{css}" style="width:{width}%"></span>'
        f'</span><span class="share">{percent(share)}</span>'
    )


def comparison_table(comparison: Comparison) -> str:
    """Each chip alone, the even split, and the plan."""
    best = max(row.tokens_per_s for row in comparison.rows)
    rows = [_comparison_row(row, best) for row in comparison.rows]
    plan = next((i for i, row in enumerate(comparison.rows) if row.role == "plan"), None)
    columns = ("chips", "", "predicted", "measured", "spread", "error", "tokens/s", "of the best")
    caption = "Seconds of one optimizer step; each row was run on its own"
    return table(caption, columns, rows, words=2, marked=plan)


def _comparison_row(row: Measurement, best: float) -> tuple[str, ...]:
    error = percent(row.prediction_error, 1)
    return (
        row.name,
        _ROLES[row.role] if row.name != _ROLES[row.role] else "",
        format_seconds(row.predicted_seconds),
        format_seconds(row.measured_seconds),
        f"± {percent(row.spread, 1)}",
        error if error.startswith("−") else f"+{error}",
        format_count(row.tokens_per_s),
        meter(row.tokens_per_s / best),
    )


def alternatives_table(alternatives: Sequence[Alternative]) -> str:
    """The plans that the planner weighed."""
    rows = [
        (
            item.name,
            "chosen" if item.chosen else item.note,
            format_seconds(item.step_seconds),
            percent(item.aggregation, 1) if item.aggregation is not None else "–",
            meter(item.memory_share),
            f"{item.money_per_step:.4g}" if item.money_per_step else "–",
        )
        for item in alternatives
    ]
    chosen = next((i for i, item in enumerate(alternatives) if item.chosen), None)
    columns = ("plan", "", "step", "aggregation", "fullest chip", "money per step")
    caption = "What the planner weighed; every number is predicted"
    return table(caption, columns, rows, words=2, marked=chosen)


def memory_table(plan: Plan, layer_kinds: Sequence[str]) -> str:
    """Bytes on each chip of each stage; the plan must carry its prediction."""
    assert plan.prediction is not None
    pools = pool_names(plan)
    largest = max(stage.memory.total for row in plan.prediction.stages for stage in row)
    size, unit, decimals = (GIB, "GiB", 2) if largest >= 4 * GIB else (MIB, "MiB", 0)
    rows = []
    for members in alike(plan):
        stages = plan.pipelines[members[0]].stages
        for s, stage in enumerate(stages):
            memory = plan.prediction.stages[members[0]][s].memory
            parts = (
                memory.weights, memory.gradients, memory.optimizer, memory.activations,
                memory.buffers, memory.process, memory.total, memory.capacity,
            )  # fmt: skip
            rows.append(
                (
                    pipelines_label(members) if s == 0 else "",
                    f"{s + 1}",
                    pools[stage.pool].chip,
                    layers_labels(layer_kinds, stage.layers)[0],
                    *(f"{part / size:,.{decimals}f}".replace(",", NBSP) for part in parts),
                    meter(memory.total / memory.capacity),
                )
            )
    columns = (
        "", "stage", "chip", "layers", "weights", "gradients", "optimizer", "activations",
        "buffers", "process", "total", "capacity", "used",
    )  # fmt: skip
    caption = f"Predicted memory of each chip at its fullest moment, {unit}"
    return table(caption, columns, rows, words=4)


def breakdown_table(
    plan: Plan, breakdown: Breakdown | None, measured: Mapping[Lane, Sequence[Span]] | None
) -> str:
    """Where a step goes: predicted for the bottleneck, measured for the busiest stage.

    A measured wait cannot be split into a message that is under way and a neighbour that is late,
    so the two share one number.
    """
    columns, rows = ["part"], [[name] for name in _PARTS]
    if breakdown is not None:
        times = (
            breakdown.compute, breakdown.inside_stage, breakdown.pipeline_communication,
            breakdown.bubble, breakdown.gradient_sync, breakdown.optimizer, None,
        )  # fmt: skip
        columns += ["predicted", "share"]
        _add(rows, times, sum(time for time in times if time is not None))
    caption = "Where a step goes. Predicted: the bottleneck chip."
    if measured:
        lane = max(measured, key=lambda lane: _seconds(measured[lane], *_COMPUTE))
        spans = measured[lane]
        step = lanes_end(measured)
        compute, messages = _seconds(spans, *_COMPUTE), _seconds(spans, *_MESSAGES)
        reduce = _seconds(spans, ActionKind.REDUCE)
        optimizer = _seconds(spans, ActionKind.STEP)
        rest = max(step - compute - messages - reduce - optimizer, 0.0)
        columns += ["measured", "share"]
        _add(rows, (compute, None, None, messages, reduce, optimizer, rest), step)
        caption = caption if breakdown is not None else "Where a step goes."
        caption += f" Measured: {stage_label(plan, lane)}, which computes most; there, messages"
        caption += " count as waiting."
    else:
        del rows[-1]
    return table(caption, columns, rows)


_PARTS = (
    "forward and backward",
    "talk inside the stage",
    "messages between stages",
    "waiting for a neighbour stage",
    "gradient sum",
    "optimizer",
    "everything else",
)


def _add(rows: list[list[str]], times: Sequence[float | None], step: float) -> None:
    for row, time in zip(rows, times, strict=True):
        if time is None:
            row += ["", ""]
        else:
            row += [format_seconds(time) if time else "–", meter(time / step)]


def _seconds(spans: Sequence[Span], *kinds: ActionKind) -> float:
    return sum(span.seconds for span in spans if span.action.kind in kinds)


class _Markup(str):
    """Text that is HTML already."""
