"""StageTime: seconds of one micro-batch through some layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one micro-batch through some layers, and how uncertain they are.

    Attributes:
        backward: with the recomputed forward, where the stage recomputes.
        spread: relative half-width.
        weight_gradient: the part of backward that makes the gradients of weights, which a
            zero-bubble schedule can do later.
        tensor, expert, context: the part of both that is talk between the ranks of the stage.
        gather: the part of both that waits for weights that ZeRO-3 has elsewhere.
    """

    forward: float
    backward: float
    spread: float
    weight_gradient: float = 0.0
    tensor: float = 0.0
    expert: float = 0.0
    context: float = 0.0
    gather: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


def added(times: Sequence[tuple[StageTime, float]]) -> StageTime:
    """Several times one after another, each so many times over."""
    total = sum(count * time.total for time, count in times)
    spread = sum(count * time.spread * time.total for time, count in times)

    def each(name: str) -> float:
        return sum(count * getattr(time, name) for time, count in times)

    return StageTime(
        each("forward"), each("backward"), spread / total if total else 0.0,
        each("weight_gradient"), each("tensor"), each("expert"), each("context"), each("gather"),
    )  # fmt: skip


def scaled(time: StageTime, factor: float) -> StageTime:
    """All of a time's seconds so many times over."""
    if factor == 1:
        return time
    return StageTime(
        time.forward * factor, time.backward * factor, time.spread,
        time.weight_gradient * factor, time.tensor * factor, time.expert * factor,
        time.context * factor, time.gather * factor,
    )  # fmt: skip
