"""Puts the parts together: pipelines in, Prediction out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.predict.collectives import group_all_reduce_seconds, message_seconds
from pluribus.predict.compute import optimizer_seconds
from pluribus.predict.memory import stage_memory, stage_parameters
from pluribus.predict.schedule import (
    Action,
    ActionKind,
    GradientGroup,
    gradient_groups,
    plan_actions,
)
from pluribus.predict.setting import Setting
from pluribus.predict.timeline import Durations, Lane, Span, Timeline, simulate
from pluribus.spec.plan import Plan, Stage
from pluribus.spec.prediction import Breakdown, Interval, Prediction, StagePrediction
from pluribus.spec.profile import Profile

_COMPUTE = (ActionKind.FORWARD, ActionKind.BACKWARD)
_TAIL = (ActionKind.REDUCE, ActionKind.STEP)
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
    durations = _durations(plan, setting, groups)
    timeline = _timeline(plan, durations, groups)
    step = timeline.end
    tokens_per_s = plan.global_batch * setting.sequence_length / step
    bottleneck = max(timeline.lanes, key=lambda lane: timeline.seconds(lane, *_COMPUTE))
    stages = tuple(
        tuple(
            _stage_prediction(plan, setting, timeline, (p, s)) for s in range(len(pipeline.stages))
        )
        for p, pipeline in enumerate(plan.pipelines)
    )
    spread = _spread(plan, setting)
    total_alone = sum(alone.values())
    prediction = Prediction(
        step_seconds=Interval(mid=step, low=step * (1 - spread), high=step * (1 + spread)),
        breakdown=_breakdown(durations, timeline, bottleneck),
        stages=stages,
        tokens_per_s=tokens_per_s,
        mfu=_mfu(plan, setting, tokens_per_s),
        aggregation=tokens_per_s / total_alone if total_alone else None,
        alone_tokens_per_s=dict(alone),
        money_per_step=_money_per_hour(plan, setting) * step / 3600,
    )
    return Forecast(prediction, timeline)


def _timeline(plan: Plan, durations: Durations, groups: Sequence[GradientGroup]) -> Timeline:
    """Times each unlike pipeline once; sums and updates tie the pipelines together at the end."""
    lanes: dict[Lane, tuple[Span, ...]] = {}
    done: dict[tuple, int] = {}
    tails: dict[Lane, tuple[Action, ...]] = {}
    for p, stages in enumerate(plan_actions(plan, groups)):
        lanes_of = [(p, s) for s in range(len(stages))]
        # The same stages may sit in one node in one pipeline and in two nodes in another.
        alike = (
            replace(
                plan.pipelines[p],
                stages=tuple(replace(s, chips=(s.pool,)) for s in plan.pipelines[p].stages),
            ),
            tuple(durations.transfer(a, b) for a, b in itertools.pairwise(lanes_of)),
        )
        heads = {}
        for s, actions in enumerate(stages):
            cut = next(i for i, a in enumerate(actions) if a.kind in _TAIL)
            heads[p, s], tails[p, s] = actions[:cut], actions[cut:]
        if alike not in done:
            done[alike] = p
            lanes.update(simulate(heads, durations).lanes)
        else:
            for s in range(len(stages)):
                lanes[p, s] = lanes[done[alike], s]
    start = {lane: spans[-1].end for lane, spans in lanes.items()}
    ends = simulate(tails, durations, groups, start).lanes
    return Timeline({lane: lanes[lane] + ends[lane] for lane in lanes})


def _durations(plan: Plan, setting: Setting, groups: Sequence[GradientGroup]) -> Durations:
    compute = {}
    for p, s, stage in plan.stages:
        time = setting.stage_time(stage, plan.pipelines[p].micro_batch_size)
        update = optimizer_seconds(
            stage_parameters(setting, stage), setting.pool(stage.pool).chip, setting.profile
        )
        compute[(p, s), ActionKind.FORWARD] = time.forward
        compute[(p, s), ActionKind.BACKWARD] = time.backward
        compute[(p, s), ActionKind.STEP] = update

    transfers: dict[tuple[Lane, Lane], float] = {}

    def transfer(source: Lane, target: Lane) -> float:
        if (source, target) not in transfers:
            pipeline = plan.pipelines[source[0]]
            transfers[source, target] = message_seconds(
                setting.boundary_bytes(pipeline),
                pipeline.stages[source[1]].chips[0],
                pipeline.stages[target[1]].chips[0],
                setting.cluster,
                setting.profile,
            )
        return transfers[source, target]

    crossing = _crossings(plan, groups)
    reduce = [_reduce_seconds(plan, setting, group, crossing) for group in groups]
    return Durations(compute, transfer, reduce)


def _stage(plan: Plan, lane: Lane) -> Stage:
    return plan.pipelines[lane[0]].stages[lane[1]]


def _crossings(plan: Plan, groups: Sequence[GradientGroup]) -> int:
    """Gradient sums that cross between pools at the same time: one per tensor-parallel rank."""
    crossing = 0
    for group in groups:
        stages = [_stage(plan, lane) for lane in group.holders]
        if len({stage.pool for stage in stages}) > 1:
            crossing += min(stage.tensor_parallel for stage in stages)
    return max(crossing, 1)


def _reduce_seconds(plan: Plan, setting: Setting, group: GradientGroup, crossing: int) -> float:
    """The sum of one group's gradients, in fp32. With unlike tensor-parallel degrees the stage
    with the fewest chips sets the bytes per chip."""
    stages = [_stage(plan, lane) for lane in group.holders]
    tp = min(stage.tensor_parallel for stage in stages)
    layers = setting.model.layers
    parameters = sum(layers[i].parameters_per_rank(tp=tp) for i in group.layers)
    chips = [stage.chips[0] for stage in stages]
    return group_all_reduce_seconds(
        parameters * 4, chips, setting.cluster, setting.profile, crossing
    )


def _stage_prediction(
    plan: Plan, setting: Setting, timeline: Timeline, lane: Lane
) -> StagePrediction:
    pipeline = plan.pipelines[lane[0]]
    time = setting.stage_time(_stage(plan, lane), pipeline.micro_batch_size)
    return StagePrediction(
        forward=time.forward,
        backward=time.backward,
        busy=timeline.seconds(lane, *_COMPUTE) / timeline.end,
        memory=stage_memory(setting, pipeline, lane[1]),
    )


def _breakdown(durations: Durations, timeline: Timeline, lane: Lane) -> Breakdown:
    """Splits one stage's step. Waiting for a message or a sum counts as communication up to what
    it takes by itself; the rest of the wait is the bubble."""
    waited = exposed = summed = 0.0
    for span in timeline.lanes[lane]:
        if span.action.kind is ActionKind.REDUCE:
            waited += span.seconds
            summed += min(span.seconds, durations.reduce[span.action.index])
        if span.action.kind in _RECEIVE:
            step = -1 if span.action.kind is ActionKind.RECV_ACTIVATION else 1
            message = durations.transfer((lane[0], lane[1] + step), lane)
            waited += span.seconds
            exposed += min(span.seconds, message)
    sends = timeline.seconds(lane, *_SEND)
    idle = timeline.end - timeline.lanes[lane][-1].end
    return Breakdown(
        compute=timeline.seconds(lane, *_COMPUTE),
        pipeline_communication=exposed + sends,
        bubble=waited - exposed - summed + idle,
        gradient_sync=summed,
        optimizer=timeline.seconds(lane, ActionKind.STEP),
    )


def _spread(plan: Plan, setting: Setting) -> float:
    """The largest relative uncertainty of any stage: whichever errs can become the bottleneck."""
    return max(
        setting.stage_time(stage, plan.pipelines[p].micro_batch_size).spread
        for p, _, stage in plan.stages
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
