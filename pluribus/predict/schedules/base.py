"""What every schedule is made of: actions, where chunks sit, and the messages between passes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import StrEnum


class ActionKind(StrEnum):
    """What a stage can do. A zero-bubble schedule splits BACKWARD into its two halves."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
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
        chunk: which of the stage's runs of layers; of a message, the chunk on the side nearer to
            the embedding, so that both ends name it alike.
        hop: of a message, the stage nearer to the head minus the one nearer to the embedding.
    """

    kind: ActionKind
    index: int = 0
    chunk: int = 0
    hop: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" + (f".{self.chunk}" if self.chunk else "")

    def peer(self, stage: int) -> int:
        """The stage at the other end of a message that this stage sends or receives."""
        if self.kind in (ActionKind.SEND_ACTIVATION, ActionKind.RECV_GRADIENT):
            return stage + self.hop
        return stage - self.hop


Order = tuple[tuple[Action, ...], ...]  # [stage] -> its actions, one after the other

_Messages = list[Action] | None  # by micro-batch


@dataclass(frozen=True, slots=True)
class Placement:
    """Which stage holds which virtual stage; a micro-batch visits virtual stages 0, 1, 2 ….

    Attributes:
        chunks: virtual stages on each stage.
        vee: chunk 1 runs back from the last stage to the first (Qi et al. 2024,
            arXiv 2405.15362 §4); otherwise every chunk runs from the first to the last
            (Narayanan et al. 2021, arXiv 2104.04473 §2.2).
    """

    num_stages: int
    chunks: int = 1
    vee: bool = False

    @property
    def num_virtual(self) -> int:
        return self.num_stages * self.chunks

    def virtual(self, stage: int, chunk: int) -> int:
        """The virtual stage that is this chunk of this stage."""
        back = self.vee and chunk == 1
        return chunk * self.num_stages + (self.num_stages - 1 - stage if back else stage)

    def home(self, virtual: int) -> tuple[int, int]:
        """(stage, chunk) of a virtual stage."""
        chunk, stage = divmod(virtual, self.num_stages)
        back = self.vee and chunk == 1
        return (self.num_stages - 1 - stage if back else stage), chunk


def with_messages(order: Order, placement: Placement, micro_batches: int, first: int = 0) -> Order:
    """The passes with a receive right before its use and a send right after what made it.

    Args:
        order: of the stages from ``first`` on.
    """

    @functools.cache
    def each(kind: ActionKind, chunk: int, hop: int) -> list[Action]:
        """This message of every micro-batch; stages share the objects."""
        return [Action(kind, m, chunk, hop) for m in range(micro_batches)]

    def around(stage: int, chunk: int) -> dict[ActionKind, tuple[_Messages, _Messages]]:
        """What comes before and what after each kind of pass of a chunk."""
        virtual = placement.virtual(stage, chunk)
        receive = send = receive_gradient = send_gradient = None
        if virtual > 0:
            other, lower = placement.home(virtual - 1)
            if other != stage:
                receive = each(ActionKind.RECV_ACTIVATION, lower, stage - other)
                send_gradient = each(ActionKind.SEND_GRADIENT, lower, stage - other)
        if virtual < placement.num_virtual - 1:
            other, _ = placement.home(virtual + 1)
            if other != stage:
                send = each(ActionKind.SEND_ACTIVATION, chunk, other - stage)
                receive_gradient = each(ActionKind.RECV_GRADIENT, chunk, other - stage)
        return {
            ActionKind.FORWARD: (receive, send),
            ActionKind.BACKWARD: (receive_gradient, send_gradient),
            ActionKind.BACKWARD_INPUT: (receive_gradient, send_gradient),
            ActionKind.BACKWARD_WEIGHT: (None, None),
        }

    result = []
    for stage, passes in enumerate(order, first):
        messages = [around(stage, chunk) for chunk in range(placement.chunks)]
        actions: list[Action] = []
        for action in passes:
            before, after = messages[action.chunk][action.kind]
            if before:
                actions.append(before[action.index])
            actions.append(action)
            if after:
                actions.append(after[action.index])
        result.append(tuple(actions))
    return tuple(result)
