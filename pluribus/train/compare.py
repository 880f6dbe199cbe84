"""Runs plans for a few steps each and sets them side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pluribus.spec.plan import Plan
from pluribus.spec.run import Measurement, StepEvent
from pluribus.train.run import RunOptions, train

# The first step of a run pays for caches and allocations that later ones find ready.
WARM_UP_STEPS = 1


def measure_plan(
    plan: Plan,
    name: str,
    role: Literal["alone", "even", "plan"],
    folder: Path,
    *,
    steps: int = 3,
    listener: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Measurement:
    """Runs a plan for ``steps`` steps after warming up, without checkpoints.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    options = RunOptions(
        steps=steps + WARM_UP_STEPS, checkpoints=False, resume=False, timeline_every=10**9
    )
    result = train(plan, folder, options=options, listener=listener)
    if result.stopped:
        raise KeyboardInterrupt
    return measurement(plan, name, role, result.steps)


def measurement(
    plan: Plan, name: str, role: Literal["alone", "even", "plan"], steps: Sequence[StepEvent]
) -> Measurement:
    """What some steps say: their median without the first, and half the middle half."""
    seconds = sorted(step.seconds for step in steps[WARM_UP_STEPS:])
    assert seconds, f"{name}: no step after warming up"
    assert plan.prediction is not None
    middle = statistics.median(seconds)
    quarter = len(seconds) // 4
    spread = (seconds[-1 - quarter] - seconds[quarter]) / 2 / middle
    return Measurement(
        name=name,
        role=role,
        predicted_seconds=plan.prediction.step_seconds.mid,
        measured_seconds=middle,
        spread=spread,
        tokens=steps[0].tokens,
        steps=len(seconds),
    )
