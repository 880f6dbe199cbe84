"""A run's record: what `train` writes, line by line, and `report` draws (`events.jsonl`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_text


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One optimiser step, as rank 0 saw it.

    Attributes:
        loss: mean cross entropy per token of the global batch, in nats.
        seconds: wall time of the step.
        tokens: tokens in the global batch.
        gradient_norm: before clipping.
    """

    step: int
    loss: float
    seconds: float
    tokens: int
    gradient_norm: float
    learning_rate: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class ActionTime:
    """One action of one rank in one step; start and end in seconds since the step began."""

    rank: int
    action: str
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class StepTimeline:
    """Every rank's measured actions of one step."""

    step: int
    actions: tuple[ActionTime, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One way to use the chips, run for a few steps.

    Attributes:
        name: e.g. "even split" or the chip's address.
        role: a chip (or pool) alone, the even split, or the plan.
        predicted_seconds, measured_seconds: of one optimiser step; measured is a median.
        spread: relative half-width of the middle half of the measured steps.
    """

    name: str
    role: Literal["alone", "even", "plan"]
    predicted_seconds: float
    measured_seconds: float
    spread: float
    tokens: int
    steps: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.measured_seconds

    @property
    def prediction_error(self) -> float:
        """Signed, relative to measured: 0.05 means predicted 5 % too slow."""
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Measurements of one run side by side (`comparison.json`)."""

    rows: tuple[Measurement, ...]

    def row(self, role: str) -> Measurement | None:
        return next((row for row in self.rows if row.role == role), None)

    @property
    def aggregation(self) -> float | None:
        """Throughput of the plan ÷ the sum of what each chip delivers alone, all measured."""
        plan = self.row("plan")
        alone = sum(row.tokens_per_s for row in self.rows if row.role == "alone")
        return plan.tokens_per_s / alone if plan and alone else None

    @property
    def speedup_over_even(self) -> float | None:
        plan, even = self.row("plan"), self.row("even")
        return plan.tokens_per_s / even.tokens_per_s if plan and even else None


def parse_events(lines: Iterable[str], file: str) -> list[dict[str, Any]]:
    """Events from JSON lines; a torn last line (the run was killed) is dropped.

    Raises:
        ConfigError: a line other than the last is not JSON.
    """
    lines = list(lines)
    events = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ConfigError(
                "not valid JSON", where=f"{file} line {number}", do="Remove the line."
            ) from None
    return events


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a run folder's `events.jsonl`."""
    path = Path(path)
    return parse_events(read_text(path).splitlines(), str(path))


def drop_torn_line(path: str | os.PathLike[str]) -> None:
    """Removes what a killed run left of its last line, so that more can be appended."""
    path = Path(path)
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:
            path.write_bytes(whole[0] + whole[1])
