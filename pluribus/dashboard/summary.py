"""The result in words: what a reader should know who reads nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.core.units import format_count, format_seconds
from pluribus.dashboard.names import NBSP, percent
from pluribus.spec.prediction import Prediction
from pluribus.spec.run import Comparison, StepEvent


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of the head; None where nobody predicted or measured it.

    Attributes:
        num_chips: chips that the plan uses.
        aggregation: throughput ÷ the sum of what each pool (measured: each lone row of the
            comparison) delivers alone.
        aggregation_measured: whether that is measured, else predicted.
        speedup: measured throughput ÷ that of the even split.
        predicted_seconds, measured_seconds: of one optimiser step.
        predicted_tokens_per_s, measured_tokens_per_s: of the whole plan.
        final_loss: of the last step with a finite loss, nats per token.
        last_step: that step.
    """

    num_chips: int
    aggregation: float | None
    aggregation_measured: bool
    speedup: float | None
    predicted_seconds: float | None
    measured_seconds: float | None
    predicted_tokens_per_s: float | None
    measured_tokens_per_s: float | None
    final_loss: float | None
    last_step: int | None

    @property
    def error(self) -> float | None:
        """Signed, relative to measured: 0.05 means predicted 5 % too slow."""
        if self.predicted_seconds is None or self.measured_seconds is None:
            return None
        return self.predicted_seconds / self.measured_seconds - 1


def summarise(
    num_chips: int,
    prediction: Prediction | None,
    comparison: Comparison | None,
    steps: Sequence[StepEvent],
) -> Summary:
    """Measured beats predicted; the whole run beats the comparison's few steps."""
    plan_row = comparison.row("plan") if comparison else None
    measured_aggregation = comparison.aggregation if comparison else None
    predicted_aggregation = prediction.aggregation if prediction else None
    seconds = tokens_per_s = None
    if steps:
        # The first steps load kernels and warm caches; the median leaves them out.
        seconds = statistics.median(step.seconds for step in steps)
        tokens_per_s = statistics.median(step.tokens_per_s for step in steps)
    elif plan_row:
        seconds, tokens_per_s = plan_row.measured_seconds, plan_row.tokens_per_s
    last = next((step for step in reversed(steps) if math.isfinite(step.loss)), None)
    return Summary(
        num_chips=num_chips,
        aggregation=predicted_aggregation if measured_aggregation is None else measured_aggregation,
        aggregation_measured=measured_aggregation is not None,
        speedup=comparison.speedup_over_even if comparison else None,
        predicted_seconds=prediction.step_seconds.mid if prediction else None,
        measured_seconds=seconds,
        predicted_tokens_per_s=prediction.tokens_per_s if prediction else None,
        measured_tokens_per_s=tokens_per_s,
        final_loss=last.loss if last else None,
        last_step=last.step if last else None,
    )


def sentences(summary: Summary) -> tuple[str, ...]:
    """The result, one plain sentence per fact that is known."""
    chips = "This chip" if summary.num_chips == 1 else f"These {summary.num_chips} chips together"
    measured, predicted = summary.measured_tokens_per_s, summary.predicted_tokens_per_s
    result = []
    if measured is not None:
        result.append(f"{chips} train{_s(summary)} {_rate(measured)}.")
    elif predicted is not None:
        result.append(f"{chips} should train {_rate(predicted)}.")
    if summary.aggregation is not None:
        how = "measured" if summary.aggregation_measured else "predicted"
        share = percent(summary.aggregation, 1)
        each = "each" if summary.aggregation_measured else "each pool"
        result.append(f"That is {share} of the sum of what {each} delivers alone ({how}).")
    if summary.speedup is not None:
        result.append(f"It is {summary.speedup:.2f}{NBSP}× as fast as an even split.")
    result.extend(_step_sentence(summary))
    if summary.final_loss is not None:
        loss = f"{summary.final_loss:.3f}{NBSP}nats per token"
        result.append(f"After step {summary.last_step} the loss is {loss}.")
    return tuple(result)


def tiles(summary: Summary) -> tuple[tuple[str, str, str], ...]:
    """(label, value, note) of each number of the head."""
    result = []
    if summary.aggregation is not None:
        how = "measured" if summary.aggregation_measured else "predicted"
        note = f"of the sum alone, {how}"
        result.append(("Aggregation", percent(summary.aggregation, 1), note))
    if summary.speedup is not None:
        result.append(("Against the even split", f"{summary.speedup:.2f}{NBSP}×", "measured"))
    for label, measured, predicted, show in (
        ("Step", summary.measured_seconds, summary.predicted_seconds, _seconds),
        (
            "Tokens per second",
            summary.measured_tokens_per_s,
            summary.predicted_tokens_per_s,
            _count,
        ),
    ):
        if measured is not None:
            note = f"predicted {show(predicted)}" if predicted is not None else "measured"
            result.append((label, show(measured), note))
        elif predicted is not None:
            result.append((label, show(predicted), "predicted"))
    if summary.final_loss is not None:
        note = f"nats per token, step {summary.last_step}"
        result.append(("Final loss", f"{summary.final_loss:.3f}", note))
    return tuple(result)


def _step_sentence(summary: Summary) -> list[str]:
    predicted, measured, error = (
        summary.predicted_seconds,
        summary.measured_seconds,
        summary.error,
    )
    if error is not None and predicted is not None and measured is not None:
        off = f"{percent(abs(error), 1)} {'less' if error < 0 else 'more'}"
        told = f"The planner predicted {_seconds(predicted)} for a step"
        return [f"{told}, {off} than the {_seconds(measured)} it took."]
    if predicted is not None:
        return [f"A step should take {_seconds(predicted)}."]
    return [f"A step took {_seconds(measured)}."] if measured is not None else []


def _s(summary: Summary) -> str:
    return "s" if summary.num_chips == 1 else ""


def _seconds(seconds: float) -> str:
    return format_seconds(seconds).replace(" ", NBSP)


def _rate(tokens_per_s: float) -> str:
    return f"{_count(tokens_per_s)}{NBSP}tokens/s"


def _count(number: float) -> str:
    return format_count(number).replace(" ", NBSP)
