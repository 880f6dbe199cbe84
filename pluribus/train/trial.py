"""Runs the planner's best few plans for some steps, and learns from what they took.

The argmin of a prediction that errs is not the best plan: AMP's own first choice was 15 % slower
than the best plan it tried (Li et al., NeurIPS'22, its published pairs). A trial measures a few and
takes the best of them; what the chips took corrects the profile for the next plan.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pluribus.core.errors import PlanError
from pluribus.predict.predict import with_prediction
from pluribus.predict.schedule import ActionKind
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Plan
from pluribus.spec.profile import LayerTime, Profile
from pluribus.spec.run import Measurement
from pluribus.train.compare import measure_plan
from pluribus.train.lanes import Lanes

_PASSES = (ActionKind.FORWARD, ActionKind.BACKWARD)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One plan as it ran.

    Attributes:
        plan: with its prediction.
        measured: seconds of its step.
        ratios: per chip key, seconds of its passes measured ÷ predicted.
    """

    plan: Plan
    measured: Measurement
    ratios: Mapping[str, float]

    @property
    def money(self) -> float:
        """Of a step as it ran."""
        assert self.plan.prediction is not None
        predicted = self.plan.prediction
        per_second = predicted.money_per_step / predicted.step_seconds.mid
        return per_second * self.measured.measured_seconds


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of it.

    Attributes:
        tried: in the planner's order.
        refused: (position in the planner's order, why this machine cannot run it).
        best: the measured best by the job's objective, predicted anew with `profile`.
        profile: corrected by what the chips took.
    """

    tried: tuple[Tried, ...]
    refused: tuple[tuple[int, str], ...]
    best: Plan
    profile: Profile


def try_plans(
    plans: Sequence[Plan],
    setting: Setting,
    folder: Path,
    *,
    steps: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> Trial:
    """Runs plans one after the other on this machine.

    Args:
        plans: the planner's best, best first, each with its prediction.
        setting: what they were planned in.
        folder: for the runs' records.
        steps: of each plan that are timed, after one that warms up.

    Raises:
        PlanError: this machine can run none of them.
        KeyboardInterrupt: the user stopped it.
    """
    tried, refused = [], []
    for number, plan in enumerate(plans, start=1):
        progress(f"trying plan {number} of {len(plans)} for {steps} steps")
        try:
            tried.append(_try(plan, f"plan {number}", folder / f"plan-{number}", steps))
        except PlanError as error:
            refused.append((number, error.what))
    if not tried:
        raise PlanError(
            f"this machine can run none of the {len(plans)} plans: {refused[0][1]}",
            do="Plan without --trial, or for chips that are here (pluribus probe).",
        )
    profile = corrected(setting, [t.plan for t in tried], ratios_of(tried))
    best = measured_best(tried, setting)
    before = best.plan.prediction
    alone = before.alone_tokens_per_s if before else {}
    known = replace(best.plan, profile=profile)
    return Trial(
        tried=tuple(tried),
        refused=tuple(refused),
        best=with_prediction(known, replace(setting, profile=profile), alone),
        profile=profile,
    )


def measured_best(tried: Sequence[Tried], setting: Setting) -> Tried:
    """By the job's objective, with measured seconds in the place of predicted ones; where none
    meets the deadline, the quickest."""
    objective = setting.job.plan.objective
    quickest = min(tried, key=lambda t: t.measured.measured_seconds)
    if objective == "time":
        return quickest
    able = list(tried)
    if isinstance(objective, Deadline):
        steps = setting.job.train.num_steps
        able = [t for t in tried if t.measured.measured_seconds * steps <= objective.seconds]
    return min(able, key=lambda t: t.money, default=quickest)


def ratios_of(tried: Sequence[Tried]) -> dict[str, float]:
    """Per chip key, the median over the plans."""
    keys = sorted({key for t in tried for key in t.ratios})
    return {key: statistics.median(t.ratios[key] for t in tried if key in t.ratios) for key in keys}


def corrected(setting: Setting, plans: Sequence[Plan], ratios: Mapping[str, float]) -> Profile:
    """The profile with every layer's time on a chip scaled by the chip's ratio.

    Times that were formulas so far are written down for the shapes the plans use, so that the
    correction reaches them too.
    """
    old = setting.profile or Profile(cluster_digest=setting.cluster.digest)
    layers = {_key(time): time for time in old.layers}
    layers |= {_key(time): time for plan in plans for time in _formulas(setting, plan)
               if _key(time) not in layers}  # fmt: skip
    scaled = tuple(
        replace(time, forward=time.forward * ratio, backward=time.backward * ratio)
        for time in layers.values()
        for ratio in (ratios.get(time.chip, 1.0),)
    )
    return replace(old, layers=scaled)


def _try(plan: Plan, name: str, folder: Path, steps: int) -> Tried:
    spans: list[tuple[int, str, float]] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "timeline":
            spans.extend(
                (event["rank"], action["action"], action["end"] - action["start"])
                for action in event["actions"]
            )

    measured = measure_plan(
        plan, name, "plan", folder, steps=steps, listener=listen, timeline_every=2
    )
    return Tried(plan=plan, measured=measured, ratios=pass_ratios(plan, spans))


def pass_ratios(plan: Plan, spans: Sequence[tuple[int, str, float]]) -> dict[str, float]:
    """Per chip key, seconds of forward and backward measured ÷ predicted.

    Args:
        spans: (rank, action, seconds) of the steps that were timed.
    """
    assert plan.prediction is not None
    setting = Setting.of_plan(plan)
    lanes = Lanes.of_plan(plan).lane_of
    measured: dict[tuple[int, str], list[float]] = {}
    for rank, action, seconds in spans:
        kind = action.partition(":")[0]
        if kind in _PASSES:
            measured.setdefault((rank, kind), []).append(seconds)
    ratios: dict[str, list[float]] = {}
    for rank, (p, s) in enumerate(lanes):
        if any((rank, kind) not in measured for kind in _PASSES):
            continue
        expected = plan.prediction.stages[p][s]
        took = sum(statistics.median(measured[rank, kind]) for kind in _PASSES)
        chip = setting.pool(plan.pipelines[p].stages[s].pool).chip.key
        ratios.setdefault(chip, []).append(took / (expected.forward + expected.backward))
    return {chip: statistics.median(values) for chip, values in ratios.items()}


def _key(time: LayerTime) -> tuple:
    return (
        time.chip, time.layer, time.micro_batch, time.sequence_length, time.tensor_parallel,
        time.precision,
    )  # fmt: skip


def _formulas(setting: Setting, plan: Plan) -> list[LayerTime]:
    """Times of the layers as a plan uses them."""
    found = {}
    for p, _, stage in plan.stages:
        size, tp = plan.pipelines[p].micro_batch_size, stage.tensor_parallel
        for i in stage.layer_indices:
            layer = setting.model.layers[i]
            time = setting.layers_time(stage.pool, (i, i + 1), size, tp, "none")
            entry = LayerTime(
                chip=setting.pool(stage.pool).chip.key, layer=layer.signature, micro_batch=size,
                sequence_length=setting.sequence_length, tensor_parallel=tp,
                precision=setting.precision, forward=time.forward, backward=time.backward,
                spread=time.spread,
            )  # fmt: skip
            found[_key(entry)] = entry
    return list(found.values())
