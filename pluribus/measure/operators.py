"""Rank side: seconds of single operators, at as many shapes as a budget of time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from pluribus.core.units import MIB
from pluribus.measure.device import synchronize, timed
from pluribus.measure.fit import spread
from pluribus.measure.tasks import OperatorTask

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Weights are taken from here in turn, so that no cache still holds them: in training and in
# serving every layer comes with weights of its own.
_WEIGHT_BYTES = 128 * MIB
# Kernels are run in a row until they fill this: a launch or a clock tick then counts little.
_SAMPLE_S = 5e-4
_LONGEST_SHARE = 0.04  # of the budget, for one run: longer ones say little that others do not
_FIRST_ROUND_SHARE = 0.5  # of the budget, for running everything once


@dataclass
class _Entry:
    task: OperatorTask
    run: Callable[[], object]
    times: int = 1  # runs in a row per sample
    samples: list[float] = field(default_factory=list)


class OperatorBench:
    """Times operators in a precision on one device."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self._device = device
        self._dtype = _DTYPES[precision]
        self._weights = self._random(_WEIGHT_BYTES // self._dtype.itemsize)
        self._next = 0
        self._states = self._random(1)

    @torch.inference_mode()
    def measure(
        self, tasks: Sequence[OperatorTask], budget_s: float
    ) -> list[tuple[int, float, float]]:
        """Rows of index into ``tasks``, median seconds and spread, cheapest operators first.

        A first round runs each operator in the order of its cost until half of the budget is
        gone or the next would take too large a part of it; the rest of the time goes to rounds
        over those, so that a disturbed second spoils one sample of a few.
        """
        end = time.perf_counter() + budget_s
        enough = time.perf_counter() + _FIRST_ROUND_SHARE * budget_s
        entries: list[tuple[int, _Entry]] = []
        rate = 0.0
        for index in sorted(range(len(tasks)), key=lambda i: _cost(tasks[i])):
            cost = _cost(tasks[index])
            if time.perf_counter() > enough:
                break
            if rate and cost / rate > _LONGEST_SHARE * budget_s:
                break
            entry = _Entry(tasks[index], self._prepare(tasks[index]))
            timed(entry.run, self._device)  # loads the kernel
            once = timed(entry.run, self._device)
            rate = max(rate, cost / once)
            entry.times = max(1, math.ceil(_SAMPLE_S / once))
            self._sample(entry)
            entries.append((index, entry))
        while time.perf_counter() < end and entries:
            for _, entry in entries:
                if time.perf_counter() > end:
                    break
                self._sample(entry)
        return [(i, median(entry.samples), spread(entry.samples)) for i, entry in entries]

    def _sample(self, entry: _Entry) -> None:
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(entry.times):
            entry.run()
        synchronize(self._device)
        entry.samples.append((time.perf_counter() - start) / entry.times)

    def _prepare(self, task: OperatorTask) -> Callable[[], object]:
        match task.operator, task.shape:
            case "gemm", (m, n, k):
                (x,) = self._tensors((m, k))
                return lambda: functional.linear(x, self._weight(n, k))
            case "attention", (batch, heads, kv_heads, width, tokens):
                cached = (batch, kv_heads, tokens, width)
                q, k, v = self._tensors((batch, heads, tokens, width), cached, cached)
                return lambda: _attend(q, k, v, causal=True)
            case "decode_attention", (batch, heads, kv_heads, width, context):
                cached = (batch, kv_heads, context, width)
                q, k, v = self._tensors((batch, heads, 1, width), cached, cached)
                return lambda: _attend(q, k, v, causal=False)
            case "elementwise", (size,):
                third = (max(1, size // (3 * self._dtype.itemsize)),)
                a, b, c = self._tensors(third, third, third)
                return lambda: torch.add(a, b, out=c)
        raise AssertionError(f"no way to time {task.operator} of {task.shape}")

    def _tensors(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors side by side in memory that all operators share: their values do not matter."""
        sizes = [math.prod(shape) for shape in shapes]
        if sum(sizes) > self._states.numel():
            self._states = self._random(max(sum(sizes), 2 * self._states.numel()))
        parts = self._states[: sum(sizes)].split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _random(self, size: int) -> Tensor:
        return torch.randn(size, device=self._device).to(self._dtype)

    def _weight(self, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if size > self._weights.numel():
            self._weights = self._random(size)
        if self._next + size > self._weights.numel():
            self._next = 0
        taken = self._weights[self._next : self._next + size].view(rows, columns)
        self._next += size
        return taken


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1 and q.dtype == torch.float32:  # as in training: nn/attention.py says why
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _cost(task: OperatorTask) -> float:
    """FLOPs, or bytes where there are no products: an order to run things in."""
    match task.operator, task.shape:
        case "gemm", (m, n, k):
            return 2.0 * m * n * k
        case "attention", (batch, heads, _, width, tokens):
            return 4.0 * batch * heads * width * tokens * tokens
        case "decode_attention", (batch, heads, _, width, context):
            return 4.0 * batch * heads * width * context
    return float(math.prod(task.shape))
