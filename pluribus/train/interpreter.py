"""Executes a stage's action list: the list the predictor timed, action by action."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.comm.fabric import Fabric, Pending
from pluribus.nn.stage import StageModule
from pluribus.predict.schedule import Action, ActionKind
from pluribus.spec.run import ActionTime
from pluribus.train.gradients import Gradients


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: token ids and targets, each [sequences, tokens] of int64."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Neighbours:
    """Ranks of the stages before and after this one; None at the ends."""

    previous: int | None
    next: int | None


class Interpreter:
    """Runs one stage's actions.

    Args:
        module: the stage.
        actions: one step's list, as `plan_actions` made it.
        wire: dtype hidden states travel in.
        autocast: makes the context every forward runs in.
        hidden_shape: [sequences, tokens, hidden] of one micro-batch.
        step: what STEP does.
    """

    def __init__(
        self,
        module: StageModule,
        actions: Sequence[Action],
        fabric: Fabric,
        neighbours: Neighbours,
        gradients: Gradients,
        *,
        hidden_shape: tuple[int, int, int],
        wire: torch.dtype,
        autocast: Callable[[], AbstractContextManager],
        step: Callable[[], None],
    ) -> None:
        self._module = module
        self._actions = actions
        self._fabric = fabric
        self._neighbours = neighbours
        self._gradients = gradients
        self._hidden_shape = hidden_shape
        self._wire = wire
        self._autocast = autocast
        self._step = step
        self._waiting: list[Pending] = []
        self._inputs: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}
        self._received: dict[int, Tensor] = {}
        self.loss = 0.0

    def run(
        self, batch: Mapping[int, MicroBatch], num_tokens: int, *, timed: bool = False
    ) -> tuple[ActionTime, ...]:
        """One optimiser step.

        Args:
            batch: this pipeline's micro-batches by index; none for a stage between the ends.
            num_tokens: in the global batch, over all pipelines.
            timed: waits for the device after each action, and returns when each ran.

        Returns:
            Start and end of each action in seconds since the step began, if timed. `loss` then
            holds this stage's share of the mean loss per token (zero but on the last stage).
        """
        self.loss = 0.0
        self._losses: list[Tensor] = []
        times = []
        begin = time.perf_counter()
        for action in self._actions:
            start = time.perf_counter() - begin
            self._execute(action, batch, num_tokens)
            if timed:
                if self._fabric.device.type != "cpu":
                    torch.accelerator.synchronize()
                end = time.perf_counter() - begin
                times.append(
                    ActionTime(
                        rank=self._fabric.rank,
                        action=action.kind.value,
                        micro_batch=action.index,
                        start=start,
                        end=end,
                    )
                )
        left_over = [*self._inputs, *self._outputs, *self._received]
        assert not left_over, f"micro-batches {left_over} are unfinished"
        return tuple(times)

    def _execute(self, action: Action, batch: Mapping[int, MicroBatch], num_tokens: int) -> None:
        index = action.index
        match action.kind:
            case ActionKind.FORWARD:
                self._forward(index, batch.get(index), num_tokens)
            case ActionKind.BACKWARD:
                self._backward(index)
            case ActionKind.SEND_ACTIVATION:
                self._send(self._outputs[index], self._neighbours.next, 2 * index)
            case ActionKind.RECV_ACTIVATION:
                hidden = self._receive(self._neighbours.previous, 2 * index)
                self._inputs[index] = hidden.requires_grad_()
            case ActionKind.SEND_GRADIENT:
                gradient = self._inputs.pop(index).grad
                assert gradient is not None
                self._send(gradient, self._neighbours.previous, 2 * index + 1)
            case ActionKind.RECV_GRADIENT:
                self._received[index] = self._receive(self._neighbours.next, 2 * index + 1)
            case ActionKind.REDUCE:
                self._gradients.reduce(index, self._fabric)
            case ActionKind.STEP:
                self._fabric.finish(self._waiting)
                self._waiting.clear()
                self.loss = sum(loss.item() for loss in self._losses)
                self._step()

    def _forward(self, index: int, micro_batch: MicroBatch | None, num_tokens: int) -> None:
        device = self._fabric.device
        module = self._module
        if module.holds_embedding:
            assert micro_batch is not None
            x = micro_batch.inputs.to(device)
        else:
            x = self._inputs[index]
        with self._autocast():
            if module.holds_head:
                assert micro_batch is not None
                output = module.loss(x, micro_batch.targets.to(device)) / num_tokens
                self._losses.append(output.detach())
            else:
                output = module(x)
        self._outputs[index] = output

    def _backward(self, index: int) -> None:
        output = self._outputs.pop(index)
        if self._module.holds_head:
            output.backward()
        else:
            output.backward(self._received.pop(index).to(output.dtype))

    def _send(self, tensor: Tensor, to: int | None, tag: int) -> None:
        assert to is not None
        # A message that has left no longer needs its buffer.
        self._waiting = [send for send in self._waiting if not send.work.is_completed()]
        self._waiting.append(self._fabric.send(tensor.detach().to(self._wire), to, tag))

    def _receive(self, source: int | None, tag: int) -> Tensor:
        assert source is not None
        return self._fabric.receive(self._hidden_shape, self._wire, source, tag).float()
