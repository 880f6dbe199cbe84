"""Puts the parts together: pipelines in, Prediction out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.predict.boundary import boundary_seconds
from pluribus.predict.gradients import reduce_seconds
from pluribus.predict.memory import stage_memory
from pluribus.predict.price import StagePrice, stage_price
from pluribus.predict.schedule import (
    Action,
    ActionKind,
    GradientGroup,
    gradient_groups,
    pipeline_actions,
    tail_actions,
)
from pluribus.predict.setting import Setting
from pluribus.predict.timeline import Course, Durations, Lane, Timeline, simulate
from pluribus.spec.plan import Pipeline, Plan
from pluribus.spec.prediction import Breakdown, Interval, Prediction, StagePrediction
from pluribus.spec.profile import Profile

_COMPUTE = (
    ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT,
)  # fmt: skip
_RECEIVE = (ActionKind.RECV_ACTIVATION, ActionKind.RECV_GRADIENT)
_SEND = (ActionKind.SEND_ACTIVATION, ActionKind.SEND_GRADIENT)


@dataclass(frozen=True)
class Forecast:
    """A Prediction with the timeline it was read off."""

    prediction: Prediction
    timeline: Timeline


def predict(plan: Plan, profile: Profile | None = None) -> Prediction:
    """What a plan will take on its own job and cluster.

    Args:
        plan: a plan; what each pool delivers alone is taken from the prediction it carries.
        profile: measured facts to use instead of those it was planned with.
    """
    alone = plan.prediction.alone_tokens_per_s if plan.prediction else {}
    return forecast(plan, Setting.of_plan(plan, profile), alone).prediction


def forecast(plan: Plan, setting: Setting, alone: Mapping[str, float]) -> Forecast:
    """Predicts a plan in a setting that is already loaded.

    Args:
        alone: tokens/s of each pool by itself, for the aggregation.
    """
    groups = gradient_groups(plan, setting.tied_layers)
    prices = {
        (p, s): stage_price(setting, pipeline, s)
        for p, pipeline in enumerate(plan.pipelines)
        for s in range(len(pipeline.stages))
    }
    durations = _durations(plan, setting, groups, prices)
    timeline = _timeline(plan, durations, groups, setting.software.overlap_messages)
    step = timeline.end
    tokens_per_s = plan.global_batch * setting.sequence_length / step
    bottleneck = max(prices, key=lambda lane: prices[lane].busy)
    stages = tuple(
        tuple(
            _stage_prediction(setting, pipeline, s, prices[p, s], step)
            for s in range(len(pipeline.stages))
        )
        for p, pipeline in enumerate(plan.pipelines)
    )
    # Whichever stage errs most can become the bottleneck.
    spread = setting.calibration.spread or max(p.whole.spread for p in prices.values())
    total_alone = sum(alone.values())
    prediction = Prediction(
        step_seconds=Interval.around(step, spread),
        breakdown=_breakdown(durations, timeline, bottleneck, prices[bottleneck]),
        stages=stages,
        tokens_per_s=tokens_per_s,
        mfu=_mfu(plan, setting, tokens_per_s),
        aggregation=tokens_per_s / total_alone if total_alone else None,
        alone_tokens_per_s=dict(alone),
        money_per_step=_money_per_hour(plan, setting) * step / 3600,
    )
    return Forecast(prediction, timeline)


def _timeline(
    plan: Plan, durations: Durations, groups: Sequence[GradientGroup], overlaps: bool
) -> Timeline:
    """Times each unlike pipeline once; sums and updates tie the pipelines together at the end."""
    heads: dict[Lane, Course] = {}
    done: dict[tuple, int] = {}
    tails: dict[Lane, tuple[Action, ...]] = {}
    for p, pipeline in enumerate(plan.pipelines):
        lanes = [(p, s) for s in range(len(pipeline.stages))]
        tails.update((lane, tail_actions(lane, groups)) for lane in lanes)
        links = list(itertools.pairwise(lanes))
        if pipeline.schedule == "interleaved" and links:
            links.append((lanes[-1], lanes[0]))
        # The same stages may sit in one node in one pipeline and in two nodes in another.
        alike = (
            replace(pipeline, stages=tuple(replace(s, chips=(s.pool,)) for s in pipeline.stages)),
            tuple(durations.transfer(a, b) for a, b in links),
        )
        if alike not in done:
            done[alike] = p
            actions = zip(lanes, pipeline_actions(pipeline), strict=True)
            hidden = overlaps and pipeline.schedule == "interleaved"
            own = replace(durations, blocking=durations.blocking and not hidden)
            heads.update(simulate(dict(actions), own).courses)
        else:
            heads.update((lane, heads[done[alike], lane[1]]) for lane in lanes)
    start = {lane: head.end for lane, head in heads.items()}
    ends = simulate(tails, durations, groups, start).courses
    return Timeline({lane: head.followed_by(ends[lane]) for lane, head in heads.items()})


def _durations(
    plan: Plan,
    setting: Setting,
    groups: Sequence[GradientGroup],
    prices: Mapping[Lane, StagePrice],
) -> Durations:
    compute = {}
    for lane, price in prices.items():
        times = price.chunks
        compute[lane, ActionKind.FORWARD] = tuple(t.forward for t in times)
        compute[lane, ActionKind.BACKWARD] = tuple(t.backward for t in times)
        compute[lane, ActionKind.BACKWARD_INPUT] = tuple(
            t.backward - t.weight_gradient for t in times
        )
        compute[lane, ActionKind.BACKWARD_WEIGHT] = tuple(t.weight_gradient for t in times)
        compute[lane, ActionKind.STEP] = price.update
    transfers: dict[tuple[Lane, Lane], float] = {}

    def transfer(source: Lane, target: Lane) -> float:
        if (source, target) not in transfers:
            pipeline = plan.pipelines[source[0]]
            stages = pipeline.stages[source[1]], pipeline.stages[target[1]]
            transfers[source, target] = boundary_seconds(
                setting, *stages, pipeline.micro_batch_size
            )
        return transfers[source, target]

    reduce = reduce_seconds(plan, setting, groups, prices)
    return Durations(compute, transfer, reduce, setting.software.blocking_messages)


def _stage_prediction(
    setting: Setting, pipeline: Pipeline, index: int, price: StagePrice, step: float
) -> StagePrediction:
    return StagePrediction(
        forward=sum(time.forward for time in price.chunks),
        backward=sum(time.backward for time in price.chunks),
        busy=price.busy / step,
        memory=stage_memory(setting, pipeline, index),
    )


def _breakdown(
    durations: Durations, timeline: Timeline, lane: Lane, price: StagePrice
) -> Breakdown:
    """Splits one stage's step. Waiting for a message or a sum counts as communication up to what
    it takes by itself; the rest of the wait is the bubble."""
    waited = exposed = summed = 0.0
    for span in timeline.courses[lane].spans:
        if span.action.kind is ActionKind.REDUCE:
            waited += span.seconds
            summed += min(span.seconds, durations.reduce[span.action.index])
        if span.action.kind in _RECEIVE:
            message = durations.transfer((lane[0], span.action.peer(lane[1])), lane)
            waited += span.seconds
            exposed += min(span.seconds, message)
    sends = timeline.seconds(lane, *_SEND)
    idle = timeline.end - timeline.courses[lane].end
    whole, rounds = price.whole, price.rounds
    talk = whole.tensor + whole.expert + whole.context + whole.gather
    return Breakdown(
        compute=timeline.seconds(lane, *_COMPUTE) - rounds * talk,
        pipeline_communication=exposed + sends,
        bubble=waited - exposed - summed + idle,
        gradient_sync=summed,
        optimizer=timeline.seconds(lane, ActionKind.STEP),
        tensor_communication=rounds * whole.tensor,
        expert_communication=rounds * whole.expert,
        context_communication=rounds * whole.context,
        weight_gather=rounds * whole.gather,
    )


def _mfu(plan: Plan, setting: Setting, tokens_per_s: float) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM appendix B), causal attention halved."""
    peak = 0.0
    for _, _, stage in plan.stages:
        tflops = setting.pool(stage.pool).chip.peak_tflops.get(setting.precision)
        if tflops is None:
            return None
        peak += tflops * 1e12 * len(stage.chips)
    flops_per_token = 3 * setting.model.forward_flops_per_token(setting.sequence_length)
    return flops_per_token * tokens_per_s / peak


def _money_per_hour(plan: Plan, setting: Setting) -> float:
    return sum(
        setting.pool(stage.pool).price_per_chip_hour * len(stage.chips)
        for _, _, stage in plan.stages
    )


def with_prediction(plan: Plan, setting: Setting, alone: Mapping[str, float]) -> Plan:
    """The plan, carrying its prediction."""
    return replace(plan, prediction=forecast(plan, setting, alone).prediction)
