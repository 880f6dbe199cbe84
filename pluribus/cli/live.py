"""A training run on the terminal: step, loss, tokens/s, predicted against measured."""

from __future__ import annotations

import statistics
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pluribus.cli.output import messages
from pluribus.core.units import format_seconds
from pluribus.spec.plan import Plan


class TrainView:
    """A context manager whose `listen` takes the run's events.

    On a terminal a bar that moves; elsewhere a line for every tenth of the run.
    """

    def __init__(self, plan: Plan, steps: int | None = None) -> None:
        train = plan.job["train"]
        self._total = steps or train.get("steps") or (
            train["tokens"] // train["global_batch_tokens"]
        )  # fmt: skip
        self._predicted = plan.prediction.step_seconds.mid if plan.prediction else None
        self._seconds: list[float] = []
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=messages,
            disable=not messages.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainView:
        self._progress.start()
        self._task = self._progress.add_task("waiting for the ranks", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def listen(self, event: dict[str, Any]) -> None:
        """Shows one event of the run."""
        if event["event"] == "checkpoint":
            self._progress.console.print(f"[dim]· checkpoint {event['path']}[/dim]")
        elif event["event"] == "step":
            self._step(event)

    def _step(self, event: dict[str, Any]) -> None:
        # The first step warms caches up; it would bend the median of a short run.
        self._seconds = [*self._seconds, event["seconds"]][-20:]
        typical = statistics.median(self._seconds[1:] or self._seconds)
        line = f"loss {event['loss']:.3f} · {event['tokens'] / typical:,.0f} tokens/s"
        line += f" · step {format_seconds(typical)}"
        if self._predicted:
            line += f" (predicted {format_seconds(self._predicted)})"
        assert self._task is not None
        self._progress.update(self._task, completed=event["step"], description=line)
        tenth = max(1, self._total // 10)
        if not messages.is_terminal and (event["step"] % tenth == 0 or event["step"] == 1):
            messages.print(f"· step {event['step']}/{self._total} {line}")
