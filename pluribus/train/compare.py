"""Runs plans for a few steps each and sets them side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pluribus.spec.measured import WARM_UP_STEPS
from pluribus.spec.plan import Plan
from pluribus.spec.run import Measurement, StepEvent
from pluribus.train.run import RunOptions, StopRequest, train

Role = Literal["alone", "even", "plan"]


def measure_plan(
    plan: Plan,
    name: str,
    role: Role,
    folder: Path,
    *,
    steps: int = 3,
    listener: Callable[[dict[str, Any]], None] = lambda _: None,
    stop: StopRequest | None = None,
    timeline_every: int = 10**9,
) -> Measurement:
    """Runs a plan for ``steps`` steps after warming up, without checkpoints.

    Args:
        timeline_every: see `RunOptions`; by default no rank reports its actions.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    options = RunOptions(
        steps=steps + WARM_UP_STEPS,
        checkpoints=False,
        resume=False,
        timeline_every=timeline_every,
    )
    result = train(plan, folder, options=options, listener=listener, stop=stop)
    if result.stopped:
        raise KeyboardInterrupt
    return measurement(plan, name, role, result.steps)


def measure_alone(plans: Mapping[str, Plan], folder: Path, *, steps: int = 2) -> list[Measurement]:
    """Each of several plans on chips of its own, all at the same time.

    Chips of one machine share its memory bandwidth, caches and power. That a chip slows down
    when its neighbour works is no loss of working together, so each is measured beside the
    others, every one training a model of its own.

    Args:
        plans: by name; no chip is in two of them.
        steps: of the slowest; the others make as many as fit into the same time.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    seconds = {n: plan.prediction.step_seconds.mid for n, plan in plans.items() if plan.prediction}
    longest = max(seconds.values()) * (steps + WARM_UP_STEPS)
    stop = StopRequest()
    with stop.on_signals(), ThreadPoolExecutor(len(plans)) as pool:
        runs = [
            pool.submit(
                measure_plan,
                plan,
                name,
                "alone",
                folder / name.replace("/", "-").replace(" ", "-"),
                steps=max(steps, round(longest / seconds[name]) - WARM_UP_STEPS),
                stop=stop,
            )
            for name, plan in plans.items()
        ]
        return [run.result() for run in runs]


def measurement(plan: Plan, name: str, role: Role, steps: Sequence[StepEvent]) -> Measurement:
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
