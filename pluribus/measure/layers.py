"""Rank side: forward, backward and update of single layers, as in training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pluribus.core.errors import MeasureError
from pluribus.measure.device import synchronize, timed
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import StageModule, build_stage

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LayerBench:
    """One layer of a model with the gradients training would give it.

    Args:
        index: into the model's list of layers.
        precision: fp32 computes plainly, any other under autocast with fp32 parameters.
    """

    def __init__(
        self, config: DecoderConfig, index: int, precision: str, device: torch.device
    ) -> None:
        self._precision = precision
        self._device = device
        # Values cost time and change none, so the real ones are not made.
        self.module: StageModule = build_stage(
            config, (index, index + 1), seed=0, device="meta", dtype=torch.float32
        ).to_empty(device=device)
        for parameter in self.module.parameters():
            torch.nn.init.normal_(parameter, std=config.initializer_range)
            parameter.grad = torch.zeros_like(parameter)  # training accumulates in place

    def inputs(self, micro_batch: int, sequence_length: int) -> tuple[Tensor, Tensor]:
        """The layer's input, and its targets or the gradient of its output."""
        module, shape = self.module, (micro_batch, sequence_length)
        vocabulary, hidden = module.config.vocab_size, module.config.hidden_size
        tokens = torch.randint(vocabulary, shape, device=self._device)
        states = torch.randn(*shape, hidden, device=self._device)
        x = tokens if module.holds_embedding else states
        return x, tokens if module.holds_head else 1e-3 * torch.randn_like(states)

    def run(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Seconds of forward and of backward for one micro-batch."""
        # A received hidden state is a new leaf each time; token ids have no gradient.
        x = x if self.module.holds_embedding else x.detach().requires_grad_()
        synchronize(self._device)
        start = time.perf_counter()
        output = self._forward(x, y)
        synchronize(self._device)
        middle = time.perf_counter()
        output.backward(None if self.module.holds_head else y.to(output.dtype))
        synchronize(self._device)
        return middle - start, time.perf_counter() - middle

    def _forward(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = _AUTOCAST.get(self._precision)
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            return self.module.loss(x, y) / y.numel() if self.module.holds_head else self.module(x)


class OptimizerBench:
    """What the trainer does once a step, on the parameters of one layer: clear the gradients,
    take their norm, update. The rate 0 leaves the parameters in place."""

    def __init__(self, module: StageModule, device: torch.device) -> None:
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        self._parameters = sum(parameter.numel() for parameter in module.parameters())
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
        layers: indices into the model's list.
        optimizer_layer: one of them.
        micro_batches: sizes in sequences.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: tuple[int, ...],
        optimizer_layer: int,
        micro_batches: tuple[int, ...],
        sequence_length: int,
        precision: str,
        device: torch.device,
    ) -> None:
        self._sequence_length = sequence_length
        with _memory(f"the model's layers {layers}"):
            self._layers = {i: LayerBench(config, i, precision, device) for i in layers}
            self._optimizer = OptimizerBench(self._layers[optimizer_layer].module, device)
        self._entries = [(layer, size) for layer in layers for size in micro_batches]
        self.layer_samples: dict[tuple[int, int], list[tuple[float, float]]] = {
            entry: [] for entry in self._entries
        }
        self.optimizer_samples: list[float] = []

    @property
    def num_steps(self) -> int:
        """Steps of one round."""
        return len(self._entries) + 1

    def rounds(self) -> Iterator[None]:
        """Times every entry once per round, without end; control returns after each entry.

        The first round does not count: kernels load, and the optimiser makes its state.
        """
        for count in itertools.count():
            for layer, size in self._entries:
                with _memory(f"layer {layer} with {size} × {self._sequence_length} tokens"):
                    bench = self._layers[layer]
                    seconds = bench.run(*bench.inputs(size, self._sequence_length))
                if count:
                    self.layer_samples[layer, size].append(seconds)
                yield
            update = self._optimizer.run()
            if count:
                self.optimizer_samples.append(update)
            yield


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
