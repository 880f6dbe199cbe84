"""The action list of a plan: what each stage does, in order.

One list serves three readers: the timeline predicts it, the runtime executes it, the report
draws it. Messages are matched by kind, micro-batch and the two neighbour stages; a send never
waits for its receiver. `REDUCE` sums one gradient group over the stages that hold it; every
member lists its groups in ascending order, so overlapping groups cannot deadlock.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pluribus.spec.plan import Pipeline, Plan


class ActionKind(StrEnum):
    """What a stage can do."""

    FORWARD = "forward"
    BACKWARD = "backward"
    SEND_ACTIVATION = "send_activation"
    RECV_ACTIVATION = "recv_activation"
    SEND_GRADIENT = "send_gradient"
    RECV_GRADIENT = "recv_gradient"
    REDUCE = "reduce"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a stage does.

    Attributes:
        index: the micro-batch; for REDUCE the gradient group; for STEP zero.
    """

    kind: ActionKind
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}"


@dataclass(frozen=True, slots=True)
class GradientGroup:
    """Parameters whose gradients are summed over the same set of stages.

    Attributes:
        layers: indices into `Model.layers`; a tied head lists the embedding's index.
        holders: (pipeline, stage) pairs, ascending.
    """

    layers: tuple[int, ...]
    holders: tuple[tuple[int, int], ...]


def pipeline_actions(pipeline: Pipeline) -> tuple[tuple[Action, ...], ...]:
    """Forward, backward and messages of each stage of one pipeline, without REDUCE and STEP.

    1F1B is PipeDream-Flush (Narayanan et al. 2021, arXiv 2006.09503 §2.2): stage s of S runs
    min(S − 1 − s, M) forwards ahead, then alternates. GPipe runs every forward first
    (Huang et al. 2019).
    """
    num_stages = len(pipeline.stages)
    return tuple(
        _stage_actions(stage, num_stages, pipeline.micro_batches, pipeline.schedule)
        for stage in range(num_stages)
    )


@functools.lru_cache(maxsize=256)  # like pipelines of a large plan share their lists
def _stage_actions(
    stage: int, num_stages: int, num_micro_batches: int, schedule: str
) -> tuple[Action, ...]:
    ahead = num_stages - 1 - stage if schedule == "1f1b" else num_micro_batches
    ahead = min(ahead, num_micro_batches)
    actions: list[Action] = []

    def forward(micro_batch: int) -> None:
        if stage > 0:
            actions.append(Action(ActionKind.RECV_ACTIVATION, micro_batch))
        actions.append(Action(ActionKind.FORWARD, micro_batch))
        if stage < num_stages - 1:
            actions.append(Action(ActionKind.SEND_ACTIVATION, micro_batch))

    def backward(micro_batch: int) -> None:
        if stage < num_stages - 1:
            actions.append(Action(ActionKind.RECV_GRADIENT, micro_batch))
        actions.append(Action(ActionKind.BACKWARD, micro_batch))
        if stage > 0:
            actions.append(Action(ActionKind.SEND_GRADIENT, micro_batch))

    for micro_batch in range(ahead):
        forward(micro_batch)
    for micro_batch in range(num_micro_batches):
        if ahead + micro_batch < num_micro_batches:
            forward(ahead + micro_batch)
        backward(micro_batch)
    return tuple(actions)


def max_in_flight(pipeline: Pipeline, stage: int) -> int:
    """Micro-batches whose activations a stage holds at its fullest moment."""
    if pipeline.schedule == "gpipe":
        return pipeline.micro_batches
    return min(len(pipeline.stages) - stage, pipeline.micro_batches)


def gradient_groups(plan: Plan, tied: tuple[int, int] | None = None) -> tuple[GradientGroup, ...]:
    """Groups of layers by the set of stages that hold them; sets of one stage are left out.

    Args:
        plan: the plan.
        tied: (embedding, head) layer indices of a model with tied embeddings: a stage with the
            head also holds the embedding matrix.
    """
    holders: dict[int, set[tuple[int, int]]] = {}
    for p, s, stage in plan.stages:
        for layer in range(*stage.layers):
            holders.setdefault(layer, set()).add((p, s))
    if tied is not None:
        embedding, head = tied
        holders[embedding] |= holders[head]
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for layer in sorted(holders):
        groups.setdefault(tuple(sorted(holders[layer])), []).append(layer)
    return tuple(
        GradientGroup(tuple(layers), members)
        for members, layers in groups.items()
        if len(members) > 1
    )


def plan_actions(
    plan: Plan, groups: Sequence[GradientGroup]
) -> tuple[tuple[tuple[Action, ...], ...], ...]:
    """Every stage's whole step: [pipeline][stage] -> actions, REDUCE and STEP at the end."""
    result = []
    for p, pipeline in enumerate(plan.pipelines):
        stages = []
        for s, actions in enumerate(pipeline_actions(pipeline)):
            mine = [g for g, group in enumerate(groups) if (p, s) in group.holders]
            reduces = tuple(Action(ActionKind.REDUCE, g) for g in mine)
            stages.append((*actions, *reduces, Action(ActionKind.STEP)))
        result.append(tuple(stages))
    return tuple(result)
