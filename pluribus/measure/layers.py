"""Rank side: forward, backward and update of layers, as in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pluribus.core.errors import MeasureError
from pluribus.core.units import MIB
from pluribus.measure.device import synchronize, timed
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import StageModule, build_stage

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


# Enough like layers in a row that their weights do not stay in a processor's cache from one
# micro-batch to the next; in training they do not either.
_CHAIN_BYTES = 128 * MIB


class LayerBench:
    """Like layers of a model in a row, with the gradients training would give them.

    Args:
        index: into the model's list of layers.
        count: how many layers of the model are like it; as many are timed, in a row, unless
            fewer are already more than a cache holds.
        precision: fp32 computes plainly, any other under autocast with fp32 parameters.
    """

    def __init__(
        self,
        config: DecoderConfig,
        index: int,
        count: int,
        precision: str,
        device: torch.device,
    ) -> None:
        self._precision = precision
        self._device = device
        self.module = self._make(config, index)
        size = sum(parameter.nbytes for parameter in self.module.parameters())
        # The ends of a model are single; only blocks follow one another.
        single = self.module.holds_embedding or self.module.holds_head
        length = 1 if single else max(1, min(count, _CHAIN_BYTES // size))
        self.chain = [self.module] + [self._make(config, index) for _ in range(length - 1)]

    def _make(self, config: DecoderConfig, index: int) -> StageModule:
        # Values cost time and change none, so the real ones are not made.
        module: StageModule = build_stage(
            config, (index, index + 1), seed=0, device="meta", dtype=torch.float32
        ).to_empty(device=self._device)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=config.initializer_range)
            parameter.grad = torch.zeros_like(parameter)  # training accumulates in place
        return module

    def inputs(self, micro_batch: int, sequence_length: int) -> tuple[Tensor, Tensor]:
        """The layer's input, and its targets or the gradient of its output."""
        module, shape = self.module, (micro_batch, sequence_length)
        vocabulary, hidden = module.config.vocab_size, module.config.hidden_size
        tokens = torch.randint(vocabulary, shape, device=self._device)
        states = torch.randn(*shape, hidden, device=self._device)
        x = tokens if module.holds_embedding else states
        return x, tokens if module.holds_head else 1e-3 * torch.randn_like(states)

    def run(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Seconds of forward and of backward of one layer for one micro-batch."""
        # A received hidden state is a new leaf each time; token ids have no gradient.
        x = x if self.module.holds_embedding else x.detach().requires_grad_()
        synchronize(self._device)
        start = time.perf_counter()
        output = self._forward(x, y)
        synchronize(self._device)
        middle = time.perf_counter()
        output.backward(None if self.module.holds_head else y.to(output.dtype))
        synchronize(self._device)
        length = len(self.chain)
        return (middle - start) / length, (time.perf_counter() - middle) / length

    def _forward(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = _AUTOCAST.get(self._precision)
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            if self.module.holds_head:
                return self.module.loss(x, y) / y.numel()
            for module in self.chain:
                x = module(x)
            return x


class OptimizerBench:
    """What the trainer does once a step, on the parameters of some layers: clear the gradients,
    take their norm, update. The rate 0 leaves the parameters in place."""

    def __init__(self, modules: Sequence[StageModule], device: torch.device) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
        self._parameters = sum(parameter.numel() for parameter in parameters)
        self._device = device

    def run(self) -> float:
        """Seconds per parameter of one update."""
        return timed(self._step, self._device) / self._parameters

    def _step(self) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.zero_()
                torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
        self._optimizer.step()


class Bench:
    """Every entry of a profile on one chip, timed in turn.

    Round after round over all entries: a disturbed second then spoils one sample of a few
    entries, which their medians drop, and not every sample of one.

    Args:
        layers: indices into the model's list, with how many of its layers are like each.
        optimizer_layer: one of them.
        micro_batches: sizes in sequences.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Mapping[int, int],
        optimizer_layer: int,
        micro_batches: tuple[int, ...],
        sequence_length: int,
        precision: str,
        device: torch.device,
    ) -> None:
        self._sequence_length = sequence_length
        with _memory(f"the model's layers {tuple(layers)}"):
            self._layers = {
                index: LayerBench(config, index, count, precision, device)
                for index, count in layers.items()
            }
            self._optimizer = OptimizerBench(self._layers[optimizer_layer].chain, device)
        self._entries = [(layer, size) for layer in layers for size in micro_batches]
        self.layer_samples: dict[tuple[int, int], list[tuple[float, float]]] = {
            entry: [] for entry in self._entries
        }
        self.optimizer_samples: list[float] = []

    @property
    def num_steps(self) -> int:
        """Steps of one round."""
        return len(self._entries) + 1

    def rounds(self, count: int, slowest: Callable[[float], float] = float) -> Iterator[None]:
        """Times every entry at least once per round; control returns after each entry.

        The round before the first does not count: kernels load, and the optimiser makes its state.

        Args:
            count: rounds that count.
            slowest: called before each entry with what it took the last time; returns when every
                chip is there, with the longest of their times. A chip repeats the entry until
                that time is over: all then work on the same entry, as they do in training, and
                none on a machine that waits for others.
        """
        last: dict[tuple[int, int] | None, float] = {}
        for number in range(count + 1):
            for entry in (*self._entries, None):
                pace = slowest(last.get(entry, 0.0))
                start = time.perf_counter()
                spent = took = 0.0
                while spent + took / 2 <= pace or not took:
                    began = time.perf_counter()
                    self._once(entry, counts=number > 0)
                    took = time.perf_counter() - began
                    spent = time.perf_counter() - start
                last[entry] = took
                yield

    def _once(self, entry: tuple[int, int] | None, *, counts: bool) -> None:
        if entry is None:
            update = self._optimizer.run()
            if counts:
                self.optimizer_samples.append(update)
            return
        layer, size = entry
        with _memory(f"layer {layer} with {size} × {self._sequence_length} tokens"):
            bench = self._layers[layer]
            seconds = bench.run(*bench.inputs(size, self._sequence_length))
        if counts:
            self.layer_samples[entry].append(seconds)


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """Turns the allocator's refusal into a message."""
    try:
        yield
    except RuntimeError as error:  # which torch.OutOfMemoryError is one of
        refused = "can't allocate memory" in str(error)  # the CPU allocator has no class for it
        if not (refused or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise MeasureError(
            f"the chip's memory does not hold {what}",
            do="Lower sequence_length or the largest of micro_batch_sizes.",
        ) from error
