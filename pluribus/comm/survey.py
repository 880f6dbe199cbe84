"""What a group's links and algorithms do: measured by all its ranks, for people to read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm import probe
from pluribus.comm.algorithms.registry import ALGORITHMS
from pluribus.comm.group import Group

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One algorithm at one size.

    Attributes:
        num_bytes: of the whole buffer, as in nccl-tests: of what is gathered or scattered.
        seconds: median of the slowest rank's times.
        predicted_seconds: by the cost model, corrections included.
        bus_bytes_per_s: what the links of a ring would carry to be as fast (nccl-tests).
        chosen: whether the tuner takes it.
    """

    operation: str
    num_bytes: int
    algorithm: str
    seconds: float
    predicted_seconds: float
    bus_bytes_per_s: float
    chosen: bool


def bus_share(operation: str, size: int) -> float:
    """Bytes over each link of a ring per byte of the buffer (nccl-tests, PERFORMANCE.md)."""
    if operation == "broadcast":
        return 1.0
    return (2 if operation == "all_reduce" else 1) * (size - 1) / size


def links(group: Group) -> dict[str, Any]:
    """The link between every two ranks and every host's speeds; every member calls it.

    Returns:
        ``ranks`` with island and speeds, ``links`` with the figures of each pair, and ``seconds``
        that the tuner's own probe took; plain values.
    """
    start = time.perf_counter()
    chosen_by = group.probe()
    seconds = time.perf_counter() - start
    pairs = probe.matrix(group)
    own = probe.speeds(group)
    table = torch.zeros(group.size(), 3, dtype=torch.float64)
    table[group.rank()] = torch.tensor([own.code, own.copy, own.add], dtype=torch.float64)
    group.allreduce([table]).wait()
    return {
        "ranks": [
            {"rank": rank, "island": group.layout.island_of(rank), "code_bytes_per_s": code,
             "copy_bytes_per_s": copy, "add_bytes_per_s": add}
            for rank, (code, copy, add) in enumerate(table.tolist())
        ],
        "links": [
            {"ranks": list(pair), **asdict(link)} for pair, link in sorted(pairs.items())
        ],
        "used": asdict(chosen_by),
        "probe_seconds": seconds,
    }  # fmt: skip


def algorithms(
    group: Group, operations: Sequence[str], sizes: Sequence[int], repeats: int, every: bool = True
) -> Iterator[Row]:
    """Times algorithms; every member calls it and goes on to the end.

    Args:
        sizes: bytes.
        every: all algorithms that fit; else the tuner's choice alone.
    """
    for operation in operations:
        for num_bytes in sizes:
            yield from _at_size(group, operation, num_bytes, repeats, every)


def _at_size(
    group: Group, operation: str, num_bytes: int, repeats: int, every: bool
) -> Iterator[Row]:
    tuner = group.tuner
    prices = tuner.prices(operation, num_bytes)
    chosen = tuner.choose(operation, num_bytes)
    call = _call(group, operation, num_bytes)
    names = sorted(prices) if every and len(ALGORITHMS[operation]) > 1 else [chosen]
    taken = torch.zeros(repeats + 1, len(names), dtype=torch.float64)
    for repeat in range(repeats + 1):  # in turn: a slow moment of the machine touches all alike
        for column, name in enumerate(names):
            with group.forced(name):
                group.barrier().wait()
                start = time.perf_counter()
                call()
                taken[repeat, column] = time.perf_counter() - start
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(dist.ReduceOp.MAX)
    group.allreduce([taken], options).wait()
    share = bus_share(operation, group.size())
    for column, name in enumerate(names):
        seconds = statistics.median(taken[1:, column].tolist())  # the first one warms up
        yield Row(
            operation=operation,
            num_bytes=num_bytes,
            algorithm=name,
            seconds=seconds,
            predicted_seconds=prices[name],
            bus_bytes_per_s=share * num_bytes / seconds,
            chosen=name == chosen,
        )


def _call(group: Group, operation: str, num_bytes: int) -> Callable[[], object]:
    n = group.size()
    part = max(1, num_bytes // 4 // n)
    whole, one = torch.ones(part * n), torch.ones(part)
    if operation == "all_reduce":
        return lambda: group.allreduce([whole]).wait()
    if operation == "all_gather":
        return lambda: group.all_gather_single(whole, one).wait()
    if operation == "reduce_scatter":
        return lambda: group.reduce_scatter_single(one, whole).wait()
    if operation == "all_to_all":
        other = torch.empty_like(whole)
        return lambda: group.all_to_all_single(other, whole).wait()
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return lambda: group.broadcast([whole], options).wait()
