"""The action list of a plan: what each stage does, in order.

One list serves three readers: the timeline predicts it, the runtime executes it, the report
draws it. Messages are matched by kind, micro-batch, chunk and the two stages; a send never
waits for its receiver. `REDUCE` sums one gradient group over the stages that hold it; every
member lists its groups in the same order, so overlapping groups cannot deadlock. Those that share
no stage run side by side, last layers first: the stages that hold them are the first to end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from pluribus.predict.schedules.base import Action, ActionKind, Order, Placement, with_messages
from pluribus.predict.schedules.gpipe import gpipe
from pluribus.predict.schedules.interleaved import interleaved
from pluribus.predict.schedules.one_f_one_b import one_f_one_b, one_f_one_b_stage
from pluribus.predict.schedules.zero_bubble import zb_h1, zb_h2
from pluribus.predict.schedules.zero_bubble_v import zbv
from pluribus.spec.plan import PassTimes, Pipeline, Plan, ScheduleName


@dataclass(frozen=True, slots=True)
class Structure:
    """What the order of passes depends on: equal structures share their lists.

    Attributes:
        chunks: virtual stages on each stage.
        pass_times: see `Pipeline.pass_times`.
    """

    schedule: ScheduleName
    num_stages: int
    micro_batches: int
    chunks: int
    pass_times: PassTimes

    @classmethod
    def of(cls, pipeline: Pipeline) -> Structure:
        return cls(
            pipeline.schedule,
            len(pipeline.stages),
            pipeline.rounds,
            pipeline.virtual_stages,
            pipeline.pass_times,
        )

    @property
    def placement(self) -> Placement:
        return Placement(self.num_stages, self.chunks, vee=self.schedule == "zbv")


@dataclass(frozen=True, slots=True)
class GradientGroup:
    """Parameters whose gradients are summed over the same set of stages.

    Attributes:
        layers: indices into `Model.layers`; a tied head lists the embedding's index.
        holders: (pipeline, stage) pairs, ascending.
    """

    layers: tuple[int, ...]
    holders: tuple[tuple[int, int], ...]


def pipeline_actions(pipeline: Pipeline) -> Order:
    """Passes and messages of each stage of one pipeline, without REDUCE and STEP."""
    return _actions(Structure.of(pipeline))


@functools.lru_cache(maxsize=256)  # like pipelines of a large plan share their lists
def _actions(structure: Structure) -> Order:
    return with_messages(passes(structure), structure.placement, structure.micro_batches)


def stage_actions(structure: Structure, stage: int) -> tuple[Action, ...]:
    """Passes and messages of one stage of a pipeline of this structure."""
    if structure.schedule != "1f1b":
        return _actions(structure)[stage]
    order = (one_f_one_b_stage(structure.num_stages, structure.micro_batches, stage),)
    return with_messages(order, structure.placement, structure.micro_batches, stage)[0]


def passes(structure: Structure) -> Order:
    """Forwards and backwards of each stage, without messages."""
    size = structure.num_stages, structure.micro_batches
    match structure.schedule:
        case "1f1b":
            return one_f_one_b(*size)
        case "gpipe":
            return gpipe(*size)
        case "interleaved":
            return interleaved(*size, structure.chunks)
        case "zb-h1":
            return zb_h1(*size)
        case "zb-h2":
            return zb_h2(*size, structure.pass_times)
        case "zbv":
            return zbv(*size)


def max_in_flight(pipeline: Pipeline, stage: int) -> float:
    """Micro-batches whose activations a replica of a stage holds at its fullest moment."""
    return in_flight(Structure.of(pipeline), stage)


def in_flight(structure: Structure, stage: int) -> float:
    """Micro-batches whose activations a stage holds at its fullest moment.

    A chunk of v counts as 1/v. With split backward passes an activation counts in full until
    its weight gradient is done: Qi et al. 2023 (arXiv 2401.10241 §2.3) count M_B before the
    gradient of the input and M_W after it, 34 : 32 with flash attention (Table 1).
    """
    if structure.schedule == "gpipe":
        return structure.micro_batches
    if structure.schedule == "1f1b":
        return min(structure.num_stages - stage, structure.micro_batches)
    # Once a pipeline is full it goes round in circles.
    forward, backward, _, message = structure.pass_times
    around = math.ceil((forward + backward + 2 * message) / forward)
    full = structure.num_stages * (3 + 2 * around)
    structure = replace(structure, micro_batches=min(structure.micro_batches, full))
    return _most_held(structure)[stage] / structure.chunks


@functools.lru_cache(maxsize=256)
def _most_held(structure: Structure) -> tuple[int, ...]:
    """Chunk activations each stage holds at its fullest moment."""
    fullest = []
    for actions in passes(structure):
        held = most = 0
        for action in actions:
            if action.kind is ActionKind.FORWARD:
                held += 1
                most = max(most, held)
            elif action.kind is not ActionKind.BACKWARD_INPUT:
                held -= 1
        fullest.append(most)
    return tuple(fullest)


def gradient_groups(plan: Plan, tied: tuple[int, int] | None = None) -> tuple[GradientGroup, ...]:
    """Groups of layers by the set of stages that hold them, in the order they are summed in; a set
    of one stage counts where the stage has several replicas.

    Args:
        plan: the plan.
        tied: (embedding, head) layer indices of a model with tied embeddings: a stage with the
            head also holds the embedding matrix.
    """
    holders: dict[int, set[tuple[int, int]]] = {}
    for p, s, stage in plan.stages:
        for layer in stage.layer_indices:
            holders.setdefault(layer, set()).add((p, s))
    if tied is not None:
        embedding, head = tied
        holders[embedding] |= holders[head]
    by_members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for layer in sorted(holders):
        by_members.setdefault(tuple(sorted(holders[layer])), []).append(layer)
    groups = [
        GradientGroup(tuple(layers), members)
        for members, layers in reversed(by_members.items())
        if len(members) > 1 or _replicated(plan, *members[0])
    ]
    turns = in_turn([g.holders for g in groups], [len(g.layers) for g in groups])
    return tuple(groups[g] for g in turns)


def in_turn(holders: Sequence[Iterable[Hashable]], sizes: Sequence[float]) -> list[int]:
    """The order of sums in which the fewest wait for each other.

    Stages whose borders interleave chain their sums: one after another down the layers, each would
    wait for the one before it. So every next one is the first that those before it let begin
    soonest (list scheduling, Graham 1966).

    Args:
        holders: of each sum; one holder takes part in one sum at a time.
        sizes: of each sum, in proportion to how long it takes.
    """
    held: dict[Hashable, list[int]] = {}
    for index, members in enumerate(holders):
        for member in members:
            held.setdefault(member, []).append(index)
    others: list[set[int]] = [set() for _ in holders]
    for together in {tuple(indices) for indices in held.values()}:
        for index in together:
            others[index].update(together)
    begin = dict.fromkeys(range(len(holders)), 0.0)
    order = []
    while begin:
        index = min(begin, key=lambda i: (begin[i], i))
        end = begin.pop(index) + sizes[index]
        order.append(index)
        for other in others[index] & begin.keys():
            begin[other] = max(begin[other], end)
    return order


def _replicated(plan: Plan, pipeline: int, stage: int) -> bool:
    one = plan.pipelines[pipeline].stages[stage]
    return one.data_parallel * one.context_parallel > 1


def plan_actions(
    plan: Plan, groups: Sequence[GradientGroup]
) -> tuple[tuple[tuple[Action, ...], ...], ...]:
    """Every stage's whole step: [pipeline][stage] -> actions, REDUCE and STEP at the end."""
    lanes = [
        (p, s) for p, pipeline in enumerate(plan.pipelines) for s in range(len(pipeline.stages))
    ]
    tails = tail_actions(lanes, groups)
    return tuple(
        tuple((*actions, *tails[p, s]) for s, actions in enumerate(pipeline_actions(pipeline)))
        for p, pipeline in enumerate(plan.pipelines)
    )


def tail_actions(
    lanes: Iterable[tuple[int, int]], groups: Sequence[GradientGroup]
) -> dict[tuple[int, int], tuple[Action, ...]]:
    """What each (pipeline, stage) does after its last micro-batch: its sums in order, and STEP."""
    tails: dict[tuple[int, int], list[Action]] = {lane: [] for lane in lanes}
    for g, group in enumerate(groups):
        for lane in group.holders:
            tails[lane].append(Action(ActionKind.REDUCE, g))
    return {lane: (*sums, Action(ActionKind.STEP)) for lane, sums in tails.items()}
