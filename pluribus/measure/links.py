"""Rank side: what a message and a sum take between two ranks while the others are quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import mean
from typing import NamedTuple

import torch

from pluribus.comm.fabric import Fabric, Group
from pluribus.measure.device import synchronize
from pluribus.measure.fit import fit_line, spread
from pluribus.predict.collectives import POINT_TO_POINT

_TAG = 0
_WARM_UP = 2


class LinkLine(NamedTuple):
    """Seconds of a message between two ranks: latency_s + bytes / bytes_per_s."""

    ranks: tuple[int, int]
    operation: str
    latency_s: float
    bytes_per_s: float
    spread: float


def time_links(
    fabric: Fabric,
    operations: Mapping[str, tuple[Sequence[int], int]],
    *,
    typical: Callable[[Sequence[float]], float],
) -> Iterator[LinkLine]:
    """Times every pair of ranks, one pair after the other.

    Every rank of the world must call this and exhaust it.

    Args:
        operations: for POINT_TO_POINT or ALL_REDUCE, the sizes in bytes and the repeats of each.
        typical: what stands for the repeats of a size: the median for what to expect, the
            minimum for what the link can do.

    Yields:
        One line per pair and operation, on the lower rank of the pair.
    """
    for pair in combinations(range(fabric.world_size), 2):
        group = fabric.group(pair)
        fabric.barrier()
        if fabric.rank in pair:
            for operation, (sizes, repeats) in operations.items():
                samples = [
                    _messages(fabric, pair, size, repeats)
                    if operation == POINT_TO_POINT
                    else _sums(fabric, group, size, repeats)
                    for size in sizes
                ]
                if fabric.rank == pair[0]:
                    latency, rate = fit_line(sizes, [typical(s) for s in samples])
                    noise = mean(spread(s) for s in samples)
                    yield LinkLine(pair, operation, latency, rate, noise)
    fabric.barrier()


def _messages(fabric: Fabric, pair: tuple[int, int], num_bytes: int, repeats: int) -> list[float]:
    """One-way seconds of a message: half of there and back, so the mean of both directions."""
    payload = torch.zeros(max(1, num_bytes // 4), device=fabric.device)
    leads = fabric.rank == pair[0]
    peer = pair[1] if leads else pair[0]
    samples = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        if leads:
            sent = fabric.send(payload, peer, _TAG)
            fabric.receive(payload.shape, payload.dtype, peer, _TAG)
        else:
            sent = fabric.send(fabric.receive(payload.shape, payload.dtype, peer, _TAG), peer, _TAG)
        fabric.finish([sent])
        synchronize(fabric.device)
        samples.append((time.perf_counter() - start) / 2)
    return samples[_WARM_UP:]


def _sums(fabric: Fabric, group: Group, num_bytes: int, repeats: int) -> list[float]:
    """Seconds of an all-reduce of a gradient buffer over the pair."""
    buffer = torch.zeros(max(1, num_bytes // 4), device=fabric.device)
    tiny = torch.zeros(1, device=fabric.device)
    samples = []
    for _ in range(_WARM_UP + repeats):
        fabric.sum(tiny, group)  # both start together
        synchronize(fabric.device)
        start = time.perf_counter()
        fabric.sum(buffer, group)
        synchronize(fabric.device)
        samples.append(time.perf_counter() - start)
    return samples[_WARM_UP:]
