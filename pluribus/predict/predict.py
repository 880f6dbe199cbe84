"""Puts the parts together: pipelines in, Prediction out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.predict.collectives import group_all_reduce_seconds, message_seconds
from pluribus.predict.compute import StageTime
from pluribus.predict.curves import lanes, message_flows, node_of, ring_flows
from pluribus.predict.memory import GRADIENT_BYTES, stage_memory, stage_parameters
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
from pluribus.spec.plan import Plan, Stage
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
    durations = _durations(plan, setting, groups)
    timeline = _timeline(plan, durations, groups)
    step = timeline.end
    tokens_per_s = plan.global_batch * setting.sequence_length / step
    busy = {(p, s): _busy(plan, setting, (p, s)) for p, s, _ in plan.stages}
    bottleneck = max(busy, key=busy.__getitem__)
    stages = tuple(
        tuple(
            _stage_prediction(plan, setting, busy[p, s] / step, (p, s))
            for s in range(len(pipeline.stages))
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
            heads.update(simulate(dict(actions), durations).courses)
        else:
            heads.update((lane, heads[done[alike], lane[1]]) for lane in lanes)
    start = {lane: head.end for lane, head in heads.items()}
    ends = simulate(tails, durations, groups, start).courses
    return Timeline({lane: head.followed_by(ends[lane]) for lane, head in heads.items()})


def _durations(plan: Plan, setting: Setting, groups: Sequence[GradientGroup]) -> Durations:
    compute = {}
    for p, s, stage in plan.stages:
        times = _chunk_times(plan, setting, (p, s))
        parameters = sum(stage_parameters(setting, chunk) for chunk in stage.by_chunk)
        compute[(p, s), ActionKind.FORWARD] = tuple(t.forward for t in times)
        compute[(p, s), ActionKind.BACKWARD] = tuple(t.backward for t in times)
        compute[(p, s), ActionKind.BACKWARD_INPUT] = tuple(
            t.backward - t.weight_gradient for t in times
        )
        compute[(p, s), ActionKind.BACKWARD_WEIGHT] = tuple(t.weight_gradient for t in times)
        compute[(p, s), ActionKind.STEP] = setting.update_seconds(
            stage.pool, stage.layer_indices, stage.tensor_parallel, parameters
        )

    transfers: dict[tuple[Lane, Lane], float] = {}
    software = setting.software
    flows = message_flows(plan, software.scattered_messages)

    def transfer(source: Lane, target: Lane) -> float:
        if (source, target) not in transfers:
            pipeline = plan.pipelines[source[0]]
            a, b = pipeline.stages[source[1]], pipeline.stages[target[1]]
            parts = lanes(a, b, software.scattered_messages)
            num_bytes = setting.boundary_bytes(pipeline)
            at_once = max(flows.get(node_of(stage.chips[0]), parts) for stage in (a, b))
            transfers[source, target] = software.message_byte_s * num_bytes + message_seconds(
                num_bytes / parts, a.chips[0], b.chips[0], setting.cluster, setting.profile,
                at_once,
            )  # fmt: skip
        return transfers[source, target]

    crossing, rings = _crossings(plan, groups), ring_flows(plan, groups)
    reduce = [_reduce_seconds(plan, setting, group, crossing, rings) for group in groups]
    return Durations(compute, transfer, reduce, blocking=software.blocking_messages)


def _stage(plan: Plan, lane: Lane) -> Stage:
    return plan.pipelines[lane[0]].stages[lane[1]]


def _chunk_times(plan: Plan, setting: Setting, lane: Lane) -> list[StageTime]:
    """Of one micro-batch through each chunk of a stage."""
    size = plan.pipelines[lane[0]].micro_batch_size
    return [setting.stage_time(chunk, size) for chunk in _stage(plan, lane).by_chunk]


def _crossings(plan: Plan, groups: Sequence[GradientGroup]) -> int:
    """Gradient sums that cross between pools at the same time: one per tensor-parallel rank."""
    crossing = 0
    for group in groups:
        stages = [_stage(plan, lane) for lane in group.holders]
        if len({stage.pool for stage in stages}) > 1:
            crossing += min(stage.tensor_parallel for stage in stages)
    return max(crossing, 1)


def _reduce_seconds(
    plan: Plan,
    setting: Setting,
    group: GradientGroup,
    crossing: int,
    rings: Mapping[str, float],
) -> float:
    """The sum of one group's gradients, in fp32. With unlike tensor-parallel degrees the stage
    with the fewest chips sets the bytes per chip."""
    stages = [_stage(plan, lane) for lane in group.holders]
    tp = min(stage.tensor_parallel for stage in stages)
    layers = setting.model.layers
    parameters = sum(layers[i].parameters_per_rank(tp=tp) for i in group.layers)
    chips = [stage.chips[0] for stage in stages]
    num_bytes = parameters * GRADIENT_BYTES
    return setting.software.sum_byte_s * num_bytes + group_all_reduce_seconds(
        num_bytes, chips, setting.cluster, setting.profile, crossing, rings
    )


def _busy(plan: Plan, setting: Setting, lane: Lane) -> float:
    """Seconds of a stage's forwards and backwards in a step."""
    times = _chunk_times(plan, setting, lane)
    return plan.pipelines[lane[0]].micro_batches * sum(time.total for time in times)


def _stage_prediction(plan: Plan, setting: Setting, busy: float, lane: Lane) -> StagePrediction:
    pipeline = plan.pipelines[lane[0]]
    times = _chunk_times(plan, setting, lane)
    return StagePrediction(
        forward=sum(time.forward for time in times),
        backward=sum(time.backward for time in times),
        busy=busy,
        memory=stage_memory(setting, pipeline, lane[1]),
    )


def _breakdown(durations: Durations, timeline: Timeline, lane: Lane) -> Breakdown:
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
        time.spread for p, s, _ in plan.stages for time in _chunk_times(plan, setting, (p, s))
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
