"""Rank side: what one chip multiplies and copies per second, alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from pluribus.measure.device import synchronize, timed

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# A dtype that multiplies at less than this share of the reference is emulated, not supported.
USEFUL_SHARE = 0.5

_SMALL, _FIRST, _LARGEST = 512, 1024, 8192  # sides of square matrices
_LONG_ENOUGH_S = 0.01  # a product this long hides launch and threading
_BUDGET_S = 0.6
_COPIED_BYTES = 64 * 2**20  # read and written: beyond the caches of nearly every chip


def matmul_rates(device: torch.device, dtypes: tuple[str, ...]) -> dict[str, float]:
    """FLOP/s of a large square product, by dtype.

    The best of repeated products: what disturbs a timing only ever makes it longer.

    Args:
        dtypes: the first is the reference; one that reaches less than `USEFUL_SHARE` of it on a
            small product is left out, since a large one could take minutes.
    """
    rates: dict[str, float] = {}
    screen = 0.0
    for dtype in dtypes:
        small = _rate(device, _DTYPES[dtype], _SMALL, budget=_BUDGET_S / 8)
        screen = screen or small
        if small < USEFUL_SHARE * screen:
            continue
        rate, side, seconds = small, _FIRST, 0.0
        while side <= _LARGEST and seconds < _LONG_ENOUGH_S:
            rate = _rate(device, _DTYPES[dtype], side, budget=_BUDGET_S)
            seconds = 2 * side**3 / rate
            side *= 2
        if not rates or rate >= USEFUL_SHARE * next(iter(rates.values())):
            rates[dtype] = rate
    return rates


def copy_bytes_per_s(device: torch.device) -> float:
    """Memory bandwidth of a copy, bytes read plus bytes written (STREAM copy, McCalpin 1995)."""
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / min(_times(lambda: target.copy_(source), device, _BUDGET_S / 2))


def _rate(device: torch.device, dtype: torch.dtype, side: int, budget: float) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / min(_times(lambda: torch.mm(a, b, out=out), device, budget))


def _times(action: Callable[[], object], device: torch.device, budget: float) -> Iterator[float]:
    """Timings after one warm-up, at least two, until the budget is spent."""
    action()
    synchronize(device)
    end = time.perf_counter() + budget
    yield timed(action, device)
    yield timed(action, device)
    while time.perf_counter() < end:
        yield timed(action, device)
