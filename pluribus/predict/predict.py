"""Puts the parts together: pipelines in, Prediction out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.predict.boundary import boundary_seconds, crossing_messages
from pluribus.predict.calibrate import interval
from pluribus.predict.curves import message_flows, node_of, ring_flows
from pluribus.predict.gradients import capacities, gradient_sum
from pluribus.predict.memory import stage_memory
from pluribus.predict.one_f_one_b import one_f_one_b_courses
from pluribus.predict.price import StagePrice, stage_price
from pluribus.predict.replicas import exposed_seconds
from pluribus.predict.schedule import (
    ActionKind,
    GradientGroup,
    Structure,
    gradient_groups,
    pipeline_actions,
    tail_actions,
)
from pluribus.predict.setting import Setting
from pluribus.predict.tail import shared_sums
from pluribus.predict.timeline import Course, Durations, Lane, Timeline, simulate
from pluribus.spec.calibration import Calibration
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


def predict(
    plan: Plan, profile: Profile | None = None, calibration: Calibration | None = None
) -> Prediction:
    """What a plan will take on its own job and cluster.

    Args:
        plan: a plan; what each pool delivers alone is taken from the prediction it carries.
        profile: measured facts to use instead of those it was planned with.
        calibration: factors to use instead of those it was planned with.
    """
    alone = plan.prediction.alone_tokens_per_s if plan.prediction else {}
    return forecast(plan, Setting.of_plan(plan, profile, calibration), alone).prediction


def step_seconds(plan: Plan, setting: Setting) -> float:
    """Seconds of one step: `forecast` without what it says of each stage."""
    return _timed(plan, setting).timeline.end


def forecast(plan: Plan, setting: Setting, alone: Mapping[str, float]) -> Forecast:
    """Predicts a plan in a setting that is already loaded.

    Args:
        alone: tokens/s of each pool by itself, for the aggregation.
    """
    timed = _timed(plan, setting)
    prices, durations, timeline = timed.prices, timed.durations, timed.timeline
    step = timeline.end
    tokens_per_s = plan.global_batch * setting.sequence_length / step
    bottleneck = max(prices, key=lambda lane: prices[lane].busy)
    like: dict[tuple, tuple[StagePrediction, ...]] = {}
    for p, (pipeline, use) in enumerate(zip(plan.pipelines, timed.uses, strict=True)):
        if use not in like:
            like[use] = tuple(
                _stage_prediction(setting, pipeline, s, prices[p, s], step)
                for s in range(len(pipeline.stages))
            )
    stages = tuple(like[use] for use in timed.uses)
    total_alone = sum(alone.values())
    prediction = Prediction(
        step_seconds=_interval(plan, setting, step, prices),
        breakdown=_breakdown(durations, timeline, bottleneck, prices[bottleneck]),
        stages=stages,
        tokens_per_s=tokens_per_s,
        mfu=_mfu(plan, setting, tokens_per_s),
        aggregation=tokens_per_s / total_alone if total_alone else None,
        alone_tokens_per_s=dict(alone),
        money_per_step=_money_per_hour(plan, setting) * step / 3600,
        bound_tokens_per_s=_bound(plan, setting),
    )
    return Forecast(prediction, timeline)


@dataclass(frozen=True)
class _Timed:
    prices: Mapping[Lane, StagePrice]
    durations: Durations
    timeline: Timeline
    uses: Sequence[tuple]  # of the pipelines


def _timed(plan: Plan, setting: Setting) -> _Timed:
    """The timeline of a plan's step, and what it was made of."""
    groups = gradient_groups(plan, setting.tied_layers)
    like: dict[tuple, list[StagePrice]] = {}
    prices = {}
    uses = [_use(pipeline) for pipeline in plan.pipelines]
    for p, (pipeline, use) in enumerate(zip(plan.pipelines, uses, strict=True)):
        if use not in like:
            like[use] = [stage_price(setting, pipeline, s) for s in range(len(pipeline.stages))]
        prices |= {(p, s): price for s, price in enumerate(like[use])}
    durations = _durations(plan, setting, prices)
    heads = _heads(plan, durations, setting.software.overlap_messages)
    start = {lane: head.end for lane, head in heads.items()}
    durations = replace(durations, reduce=_sums(plan, setting, groups, prices, start))
    tails = simulate(tail_actions(heads, groups), durations, groups, start).courses
    timeline = Timeline({lane: head.followed_by(tails[lane]) for lane, head in heads.items()})
    return _Timed(prices, durations, timeline, uses)


def _use(pipeline: Pipeline) -> tuple:
    """Equal for pipelines whose stages take as long and hold as much, wherever their chips are."""
    stages = tuple(
        (
            s.pool, len(s.chips), s.layers, s.chunks, s.tensor_parallel, s.context_parallel,
            s.expert_parallel, s.recompute, s.zero, s.chips if s.zero >= 3 else (),
        )
        for s in pipeline.stages
    )  # fmt: skip
    counts = pipeline.micro_batch_size, pipeline.micro_batches
    return stages, counts, Structure.of(pipeline)


def _heads(plan: Plan, durations: Durations, overlaps: bool) -> dict[Lane, Course]:
    """Every stage's passes and messages; like pipelines are timed once.

    Args:
        overlaps: whether interleaved pipelines send while they compute.
    """
    heads: dict[Lane, Course] = {}
    done: dict[tuple, int] = {}
    for p, pipeline in enumerate(plan.pipelines):
        lanes = [(p, s) for s in range(len(pipeline.stages))]
        links = list(itertools.pairwise(lanes))
        if pipeline.schedule == "interleaved" and links:
            links.append((lanes[-1], lanes[0]))
        # The same stages may sit in one node in one pipeline and in two nodes in another.
        alike = (
            Structure.of(pipeline),
            tuple(durations.compute[lane, kind] for lane in lanes for kind in _COMPUTE),
            tuple(durations.transfer(a, b) for a, b in links),
        )
        if alike not in done:
            done[alike] = p
            courses = one_f_one_b_courses(alike[0], lanes, durations)
            if courses is None:
                actions = zip(lanes, pipeline_actions(pipeline), strict=True)
                hidden = overlaps and pipeline.schedule == "interleaved"
                own = replace(durations, blocking=durations.blocking and not hidden)
                courses = simulate(dict(actions), own).courses
            heads.update(courses)
        else:
            heads.update((lane, heads[done[alike], lane[1]]) for lane in lanes)
    return heads


def _sums(
    plan: Plan,
    setting: Setting,
    groups: Sequence[GradientGroup],
    prices: Mapping[Lane, StagePrice],
    start: Mapping[Lane, float],
) -> list[float]:
    """What each group's sum takes once its last member has come, sharing links with others.

    Args:
        start: when each stage has done its last backward.
    """
    rings = ring_flows(plan, groups)
    phases = [gradient_sum(plan, setting, group, rings) for group in groups]
    capacity = capacities(setting, [phase for each in phases for phase in each])
    if not setting.software.overlap_gradients:
        return shared_sums(groups, phases, capacity, start).seconds
    # They run under the members' last backward, all at about the same time.
    together = shared_sums(groups, phases, capacity, dict.fromkeys(start, 0.0)).seconds
    window = {lane: sum(t.backward for t in price.chunks) for lane, price in prices.items()}
    exposed = []
    for group, seconds in zip(groups, together, strict=True):
        under = min(window[lane] for lane in group.holders)
        exposed.append(exposed_seconds(seconds, under))
        for lane in group.holders:
            window[lane] -= seconds - exposed[-1]
    return exposed


def _durations(plan: Plan, setting: Setting, prices: Mapping[Lane, StagePrice]) -> Durations:
    """All but the gradient sums."""
    compute = {}
    for lane, price in prices.items():
        times = price.chunks
        compute[lane, ActionKind.FORWARD] = tuple(t.forward for t in times)
        compute[lane, ActionKind.BACKWARD] = tuple(t.backward for t in times)
        compute[lane, ActionKind.BACKWARD_INPUT] = tuple(
            t.backward - t.weight_gradient for t in times
        )
        compute[lane, ActionKind.BACKWARD_WEIGHT] = tuple(t.weight_gradient for t in times)
        compute[lane, ActionKind.STEP] = price.update + price.gather
    crossings, flows = crossing_messages(plan), message_flows(plan, scattered=True)
    transfers: dict[tuple[Lane, Lane], float] = {}

    def transfer(source: Lane, target: Lane) -> float:
        if (source, target) not in transfers:
            pipeline = plan.pipelines[source[0]]
            stages = pipeline.stages[source[1]], pipeline.stages[target[1]]
            # Gradients go back over the link as activations come.
            ends = stages if source[1] < target[1] else stages[::-1]
            sharers = max(1, crossings[ends[0].pool, ends[1].pool])
            transfers[source, target] = boundary_seconds(
                setting, *stages, pipeline.micro_batch_size, sharers,
                max(flows.get(node_of(stage.chips[0]), 1) for stage in stages),
            )  # fmt: skip
        return transfers[source, target]

    software = setting.software
    return Durations(compute, transfer, (), software.blocking_messages, software.rendezvous)


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
        optimizer=price.update,
        tensor_communication=rounds * whole.tensor,
        expert_communication=rounds * whole.expert,
        context_communication=rounds * whole.context,
        weight_gather=rounds * whole.gather + price.gather,
    )


def _interval(
    plan: Plan, setting: Setting, step: float, prices: Mapping[Lane, StagePrice]
) -> Interval:
    """The step's seconds with the range to expect: of a calibrated cluster by what its runs left
    uncertain, otherwise by the stage that errs most, which can become the bottleneck."""
    if setting.calibration.runs:
        return interval(
            lambda factors: step_seconds(plan, setting.calibrated(factors)), setting.calibration
        )
    return Interval.around(step, max(price.whole.spread for price in prices.values()))


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


def _bound(plan: Plan, setting: Setting) -> float:
    """See `Prediction.bound_tokens_per_s`; by the plan's own micro-batch sizes."""
    whole = (0, len(setting.model.layers))
    sizes = {pipeline.micro_batch_size for pipeline in plan.pipelines}
    chips = Counter(stage.pool for _, _, stage in plan.stages for _ in stage.chips)
    rate = 0.0
    for pool, count in chips.items():
        times = {size: setting.layers_time(pool, whole, size, 1, "none").total for size in sizes}
        rate += count * max(size / seconds for size, seconds in times.items())
    return rate * setting.sequence_length / setting.calibration.overhead


def _money_per_hour(plan: Plan, setting: Setting) -> float:
    return sum(
        setting.pool(stage.pool).price_per_chip_hour * len(stage.chips)
        for _, _, stage in plan.stages
    )


def with_prediction(plan: Plan, setting: Setting, alone: Mapping[str, float]) -> Plan:
    """The plan, carrying its prediction."""
    return replace(plan, prediction=forecast(plan, setting, alone).prediction)
