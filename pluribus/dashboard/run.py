"""A run's folder as a report: reads what `train` wrote, adds the prediction, draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pluribus.core.errors import MissingFileError
from pluribus.core.io import read_json
from pluribus.core.schema import from_table
from pluribus.dashboard.report import ReportData
from pluribus.dashboard.write import write_report
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan
from pluribus.spec.run import ActionTime, Comparison, StepEvent, StepTimeline, read_events


def report_run(folder: Path) -> tuple[Path, Path]:
    """Writes report.html and trace.json into a run's folder.

    Args:
        folder: has plan.json; events.jsonl and comparison.json where there are.

    Returns:
        Both files.

    Raises:
        MissingFileError: the folder holds no plan.
    """
    if not (folder / "plan.json").exists():
        raise MissingFileError(
            "holds no plan.json", where=str(folder),
            do="Name a run's folder, e.g. the one `pluribus train` printed.",
        )  # fmt: skip
    return write_report(folder, read_run(folder))


def plan_data(plan: Plan, setting: Setting) -> ReportData:
    """What there is to draw of a plan that has not run."""
    alone = plan.prediction.alone_tokens_per_s if plan.prediction else {}
    return ReportData(
        title=f"{setting.model.name} on {len(plan.chips)} chips",
        plan=plan,
        layer_kinds=tuple(layer.kind for layer in setting.model.layers),
        model_name=setting.model.name,
        num_parameters=setting.model.num_parameters,
        predicted=forecast(plan, setting, alone).timeline,
        measured=None,
        steps=(),
        comparison=None,
    )


def read_run(folder: Path) -> ReportData:
    """Everything a run's folder tells."""
    plan = Plan.load(folder / "plan.json")
    events = read_events(folder / "events.jsonl") if (folder / "events.jsonl").exists() else []
    comparison = folder / "comparison.json"
    return replace(
        plan_data(plan, Setting.of_plan(plan)),
        measured=_timeline(events, len(plan.chips)),
        steps=_steps(events),
        comparison=(
            from_table(Comparison, read_json(comparison), file=str(comparison))
            if comparison.exists()
            else None
        ),
    )


def _steps(events: list[dict[str, Any]]) -> tuple[StepEvent, ...]:
    """The last account of each step: a resumed run may have made some twice."""
    steps = {}
    for event in events:
        if event["event"] == "step":
            fields = {k: v for k, v in event.items() if k not in ("event", "rank")}
            steps[event["step"]] = from_table(StepEvent, fields, file="events.jsonl")
    return tuple(steps[step] for step in sorted(steps))


def _timeline(events: list[dict[str, Any]], num_ranks: int) -> StepTimeline | None:
    """The middle one of the steps that every rank timed: early ones warm up."""
    by_step: dict[int, dict[int, list[Any]]] = {}
    for event in events:
        if event["event"] == "timeline":
            by_step.setdefault(event["step"], {})[event["rank"]] = event["actions"]
    whole = [step for step, ranks in sorted(by_step.items()) if len(ranks) == num_ranks]
    if not whole:
        return None
    step = whole[len(whole) // 2]
    actions = [a for rank in sorted(by_step[step]) for a in by_step[step][rank]]
    return StepTimeline(
        step=step,
        actions=tuple(from_table(ActionTime, a, file="events.jsonl") for a in actions),
    )
