"""What commands print: progress to stderr, tables or JSON to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pluribus.core.units import GIB, format_seconds
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan
from pluribus.spec.prediction import Breakdown
from pluribus.spec.run import Comparison

if TYPE_CHECKING:
    from pluribus.train.trial import Trial

# Piped output keeps a fixed width, so that tables do not depend on who reads them.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
messages = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line of progress, on stderr so that stdout stays for the result."""
    messages.print(f"[dim]· {line}[/dim]" if messages.is_terminal else f"· {line}", markup=True)


def print_json(value: Any) -> None:
    """A result for programs."""
    print(json.dumps(value, indent=1))


def print_plan(plan: Plan) -> None:
    """The plan's stages, its prediction, and the alternatives it beat."""
    setting = Setting.of_plan(plan)
    prediction = plan.prediction
    assert prediction is not None
    stages = Table(title="Who does what", title_justify="left")
    stages.add_column("stage", no_wrap=True)
    stages.add_column("chips", no_wrap=True)
    stages.add_column("layers")
    for name in ("batches", "fwd + bwd", "busy", "memory, GiB"):
        stages.add_column(name, justify="right")
    for p, pipeline, copies in _distinct(plan):
        stages.add_section()
        for alike in _alike(pipeline):
            rows = [prediction.stages[p][s] for s in alike]
            first, last = pipeline.stages[alike[0]], pipeline.stages[alike[-1]]
            numbers = f"{p + 1}.{alike[0] + 1}" + (f"–{alike[-1] + 1}" if len(alike) > 1 else "")
            count = f"{len(first.chips)} × " if len(first.chips) > 1 else ""
            layers = setting.model.describe_layers(first.layers[0], last.layers[1])
            layers += f", {first.num_layers} each" if len(alike) > 1 else ""
            stages.add_row(
                numbers + (f" × {copies}" if copies > 1 else ""),
                f"{count}{first.pool}",
                layers + (", recompute" if first.recompute == "full" else ""),
                f"{pipeline.micro_batches} of {pipeline.micro_batch_size}",
                _between([row.forward + row.backward for row in rows], format_seconds),
                _between([row.busy for row in rows], lambda share: f"{share:.0%}"),
                _between([row.memory.total / GIB for row in rows], lambda gib: f"{gib:.3g}")
                + f" of {rows[0].memory.capacity / GIB:.3g}",
            )
    console.print(stages)
    step = prediction.step_seconds
    facts = [
        f"step {format_seconds(step.mid)} ({format_seconds(step.low)}–{format_seconds(step.high)})",
        f"{prediction.tokens_per_s:,.0f} tokens/s",
    ]
    if prediction.mfu is not None:
        facts.append(f"MFU {prediction.mfu:.1%}")
    if prediction.aggregation is not None:
        facts.append(f"aggregation {prediction.aggregation:.1%}")
    if prediction.of_bound is not None:
        facts.append(f"{prediction.of_bound:.1%} of the compute bound")
    if prediction.money_per_step:
        total = prediction.money_per_step * setting.job.train.num_steps
        facts.append(f"money {total:,.0f} for {setting.job.train.num_steps:,} steps")
    console.print("predicted: " + ", ".join(facts))
    if plan.gap is not None and plan.lower_bound_seconds is not None:
        console.print(
            f"proven: no plan takes less than {format_seconds(plan.lower_bound_seconds)}; this one "
            f"is within {plan.gap:.1%} of that"
        )
    alone = ", ".join(
        f"{pool} {rate:,.0f}" if rate else f"{pool} does not fit the model"
        for pool, rate in prediction.alone_tokens_per_s.items()
    )
    if alone:
        console.print(f"alone, in tokens/s: {alone}")
    if plan.node_values and prediction is not None:
        values = ", ".join(
            f"{pool} −{seconds / step.mid:.1%}" for pool, seconds in plan.node_values.items()
        )
        console.print(f"one more node would change the step by about: {values}")
    _print_breakdown(plan)
    _print_alternatives(plan)
    for line in plan.explanation:
        console.print(f"note: {line}")


def _alike(pipeline: Pipeline) -> list[list[int]]:
    """Neighbouring stages that use like chips alike and hold as many layers share a row."""
    rows: list[list[int]] = []
    before = None
    for s, stage in enumerate(pipeline.stages):
        use = (stage.pool, len(stage.chips), stage.tensor_parallel, stage.recompute,
               stage.num_layers, bool(stage.chunks) and s)  # fmt: skip
        if use == before:
            rows[-1].append(s)
        else:
            rows.append([s])
        before = use
    return rows


def _between(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The least and the largest of some values, once if they read the same."""
    low, high = show(min(values)), show(max(values))
    if low == high:
        return low
    # 144.5–145.9 ms, 81–82%: the unit once where it is the same.
    unit = high.lstrip("0123456789.,")
    return f"{low.removesuffix(unit)}–{high}"


def _distinct(plan: Plan) -> list[tuple[int, Any, int]]:
    """(index, pipeline, copies): neighbours that differ only in their chips count as copies."""
    rows: list[tuple[int, Any, int]] = []
    for p, pipeline in enumerate(plan.pipelines):
        shape = [(s.pool, s.layers, s.tensor_parallel, s.recompute) for s in pipeline.stages]
        if rows:
            first, last, copies = rows[-1]
            same = [(s.pool, s.layers, s.tensor_parallel, s.recompute) for s in last.stages]
            if same == shape and last.micro_batches == pipeline.micro_batches:
                rows[-1] = (first, last, copies + 1)
                continue
        rows.append((p, pipeline, 1))
    return rows


def _print_breakdown(plan: Plan) -> None:
    assert plan.prediction is not None
    total = plan.prediction.step_seconds.mid
    always = ("compute", "stage messages", "bubble", "gradient sums", "optimiser")
    line = ", ".join(
        f"{name} {seconds / total:.1%}"
        for name, seconds in _parts(plan.prediction.breakdown).items()
        if seconds or name in always
    )
    console.print(f"the busiest chip's step: {line}")


def _parts(parts: Breakdown) -> dict[str, float]:
    return {
        "compute": parts.compute,
        "tensor-parallel talk": parts.tensor_communication,
        "expert-parallel talk": parts.expert_communication,
        "context-parallel talk": parts.context_communication,
        "weight gathers": parts.weight_gather,
        "stage messages": parts.pipeline_communication,
        "bubble": parts.bubble,
        "gradient sums": parts.gradient_sync,
        "optimiser": parts.optimizer,
    }


def print_details(plan: Plan) -> None:
    """Where the busiest chip's step goes, in seconds, and what fills each chip's memory."""
    prediction = plan.prediction
    assert prediction is not None
    total = prediction.step_seconds.mid
    steps = Table(title="The busiest chip's step", title_justify="left")
    steps.add_column("part")
    steps.add_column("seconds", justify="right")
    steps.add_column("share", justify="right")
    for name, seconds in _parts(prediction.breakdown).items():
        if seconds:
            steps.add_row(name, format_seconds(seconds), f"{seconds / total:.1%}")
    console.print(steps)
    memory = Table(title="Memory of each chip at its fullest, GiB", title_justify="left")
    memory.add_column("stage", no_wrap=True)
    names = ("weights", "gradients", "optimizer", "activations", "buffers", "process", "total",
             "capacity")  # fmt: skip
    for name in names:
        memory.add_column(name, justify="right")
    for p, pipeline, copies in _distinct(plan):
        for s in range(len(pipeline.stages)):
            bytes_of = prediction.stages[p][s].memory
            memory.add_row(
                f"{p}.{s}" + (f" × {copies}" if copies > 1 else ""),
                *(f"{getattr(bytes_of, name) / GIB:.2f}" for name in names),
                style=None if bytes_of.fits else "red",
            )
    console.print(memory)


def _print_alternatives(plan: Plan) -> None:
    if not plan.alternatives:
        return
    table = Table(title="What was weighed", title_justify="left")
    table.add_column("plan", overflow="fold")
    for name in ("step", "memory", "aggregation"):
        table.add_column(name, justify="right")
    table.add_column("why not", overflow="fold")
    for row in plan.alternatives:
        table.add_row(
            escape(row.name),
            format_seconds(row.step_seconds),
            f"{row.memory_share:.0%}",
            "" if row.aggregation is None else f"{row.aggregation:.1%}",
            "chosen" if row.chosen else row.note,
            style="bold" if row.chosen else None,
        )
    console.print(table)


def print_trial(trial: Trial) -> None:
    """Plans that ran for a few steps: predicted and measured, and which is kept."""
    table = Table(title="Tried on this machine", title_justify="left")
    table.add_column("plan", overflow="fold")
    for name in ("predicted", "measured", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("chips against their profile", overflow="fold")
    for row in trial.tried:
        names = [a.name for a in row.plan.alternatives if a.chosen]
        chips = ", ".join(f"{chip} × {ratio:.2f}" for chip, ratio in row.ratios.items())
        kept = row.plan.pipelines == trial.best.pipelines
        table.add_row(
            escape(row.measured.name + (f": {names[0]}" if names else "")),
            format_seconds(row.measured.predicted_seconds),
            f"{format_seconds(row.measured.measured_seconds)} ± {row.measured.spread:.0%}",
            f"{row.measured.prediction_error:+.1%}",
            chips,
            style="bold" if kept else None,
        )
    console.print(table)
    for number, why in trial.refused:
        console.print(f"plan {number} was not tried: {why}")


def print_comparison(comparison: Comparison) -> None:
    """Each chip alone, the even split and the plan: predicted and measured."""
    table = Table(title="Predicted against measured", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("tokens/s", "predicted", "measured", "error", "against even"):
        table.add_column(name, justify="right", no_wrap=True)
    even = comparison.row("even")
    for row in comparison.rows:
        ratio = f"{row.tokens_per_s / even.tokens_per_s:.2f} ×" if even else ""
        table.add_row(
            row.name,
            f"{row.tokens_per_s:,.0f}",
            format_seconds(row.predicted_seconds),
            f"{format_seconds(row.measured_seconds)} ± {row.spread:.0%}",
            f"{row.prediction_error:+.1%}",
            ratio,
            style="bold" if row.role == "plan" else None,
        )
    console.print(table)
    if comparison.aggregation is not None:
        console.print(
            f"aggregation: the chips together deliver {comparison.aggregation:.1%} of what each "
            "delivers alone, summed"
        )
