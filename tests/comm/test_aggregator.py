"""Sums through an aggregator process: equal bits on all ranks, whoever leaves or is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import errors
from pluribus.comm.aggregator import Aggregator, Hello, pack_hello
from pluribus.comm.algorithms.aggregated import streams
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.transports.aggregated import AggregatorPath
from pluribus.core.errors import ConfigError

from .ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import sys, threading
from pluribus.comm.aggregator import Aggregator, Hello, pack_hello
aggregator = Aggregator(token="right")
print(aggregator.address[1], flush=True)
aggregator.serve(threading.Event())
"""
SIZE = 1_500_001  # more chunks than slots, and an odd end


@pytest.fixture
def start() -> Iterator[Callable[[], tuple[int, dict[str, str]]]]:
    processes = []

    def begin() -> tuple[int, dict[str, str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process.pid, {
            "PLURIBUS_COMM_AGGREGATOR": f"127.0.0.1:{int(process.stdout.readline())}",
            "PLURIBUS_COMM_AGGREGATOR_TOKEN": "right",
            "PLURIBUS_COMM_ALGORITHM": "aggregator",
        }

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def parts(n: int, operation: int) -> torch.Tensor:
    return torch.randn(n, SIZE, generator=torch.Generator().manual_seed(operation))


def through_it() -> list[AggregatorPath]:
    mesh: Any = dist.group.WORLD._engine._mesh  # type: ignore[union-attr]
    paths = [path for of_peer in mesh.data.values() for path in of_peer]
    return [path for path in paths if isinstance(path, AggregatorPath)]


def sums(rank: int, n: int, names: str) -> tuple[list[float], int]:
    out: list[float] = []
    for operation in range(3):
        every = parts(n, operation)
        x = every[rank].clone()
        dist.all_reduce(x)
        if len(set(names)) == n:  # added in the order of ranks
            total = every[0].clone()
            for other in every[1:]:
                total += other
            assert torch.equal(x, total)
        assert torch.allclose(x, every.sum(0), atol=1e-4)
        out += x[::50_000].tolist()
    y = torch.full((10,), float(rank))
    dist.all_reduce(y, op=dist.ReduceOp.AVG)
    assert torch.allclose(y, torch.tensor((n - 1) / 2))
    z = torch.full((10,), rank)  # not for it: integers
    dist.all_reduce(z)
    assert (z == n * (n - 1) // 2).all()
    return out, sum(path._sums for path in through_it())


@pytest.mark.parametrize("names", ["abc", "aabb", "aaab"])
def test_sums_are_the_same_on_all_ranks(start, names: str) -> None:
    _, options = start()
    islands = [options | {"PLURIBUS_COMM_ISLAND": name} for name in names]
    found = run_ranks(sums, len(names), names, environments=islands)
    assert len({tuple(values) for values, _ in found.values()}) == 1
    assert all(count > 0 for _, count in found.values())


def test_chips_sum_through_it_by_way_of_the_host(start) -> None:
    _, options = start()
    chips = [options | {"PLURIBUS_COMM_ISLAND": name} for name in "abc"]
    chips[0] |= {"PLURIBUS_COMM_DEVICE": "fake-a"}
    chips[2] |= {"PLURIBUS_COMM_DEVICE": "fake-b@4"}
    found = run_ranks(sums, 3, "abc", environments=chips)
    assert len({tuple(values) for values, _ in found.values()}) == 1
    assert all(count > 0 for _, count in found.values())


def test_members_of_an_island_take_a_stream_each() -> None:
    assert streams(Layout.of("abc")) == [[0, 1, 2]]
    assert streams(Layout.of("aabb")) == [[0, 2], [1, 3]]
    assert streams(Layout.of("aaab")) == [[0, 3], [1, 3], [2, 3]]


def loses_it(rank: int, n: int, pid: int) -> tuple[list[float], bool]:
    """The aggregator is killed somewhere in the middle of sums."""
    out: list[float] = []
    for operation in range(6):
        x = parts(n, operation)[rank].clone()
        if rank == 1 and operation == 2:
            threading.Timer(0.003, os.kill, (pid, signal.SIGKILL)).start()
        dist.all_reduce(x)
        total = parts(n, operation)[0].clone()
        for other in parts(n, operation)[1:]:
            total += other
        assert torch.equal(x, total), operation
        out += x[::50_000].tolist()
    return out, all(path._fell_back for path in through_it())


def test_a_lost_aggregator_is_replaced_without_a_wrong_bit(start) -> None:
    pid, options = start()
    found = run_ranks(loses_it, 3, pid, environments=[
        options | {"PLURIBUS_COMM_ISLAND": name} for name in "abc"])  # fmt: skip
    assert len({tuple(values) for values, _ in found.values()}) == 1
    assert all(fell_back for _, fell_back in found.values())


def forgets(rank: int, n: int, pid: int) -> tuple[bool, bool, bool]:
    """Whether the tuner counts on an aggregator: at first, after the loss, in the next epoch."""
    group: Any = dist.group.WORLD
    known = group.tuner.corrections
    key = "all_reduce/aggregator/3"
    known.__init__({key: 7.0})
    first = group.tuner.aggregated
    if rank == 0:
        os.kill(pid, signal.SIGKILL)
    for step in range(75):  # ranks tell each other at the 32nd that is not forced, and use it later
        group._collectives.forced = "aggregator" if step < 30 else ""
        x = torch.full((1000,), float(rank))
        dist.all_reduce(x)
        assert (x == n * (n - 1) / 2).all()
    later = group.tuner.aggregated
    assert key not in known.to_json()
    group.reconfigure(list(range(n)), 1)
    return first, later, group.tuner.aggregated


def test_one_that_is_lost_is_not_counted_on(start) -> None:
    pid, options = start()
    islands = [options | {"PLURIBUS_COMM_ISLAND": name, "HOME": "/nowhere"} for name in "abc"]
    for place in islands:
        del place["PLURIBUS_COMM_ALGORITHM"]
    found = run_ranks(forgets, 3, pid, environments=islands)
    assert set(found.values()) == {(True, False, False)}


def death(rank: int, n: int) -> tuple[str, tuple[int, ...], float]:
    x = torch.ones(SIZE)
    if rank == 1:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        while True:
            dist.all_reduce(x, op=dist.ReduceOp.AVG)
    except errors.CollectiveError as error:
        group: Any = dist.group.WORLD
        group.reconfigure([0, 2], 1)
        dist.all_reduce(x.fill_(1.0))
        assert len(through_it()) == 1
        return type(error).__name__, error.ranks, float(x[-1])


def test_a_death_is_named_and_the_rest_go_on_through_it(start) -> None:
    _, options = start()
    islands = [options | {"PLURIBUS_COMM_ISLAND": name} for name in "abc"]
    found = run_ranks(death, 3, environments=islands, silent=[1])
    assert found == dict.fromkeys((0, 2), ("PeerDied", (1,), 2.0))


def leaves(rank: int, n: int) -> tuple[int, ...]:
    x = torch.ones(1000)
    dist.all_reduce(x)
    if rank == 1:
        dist.destroy_process_group()
        return (1,)
    with pytest.raises(errors.CollectiveError, match="has left") as caught:
        dist.all_reduce(x)
    return caught.value.ranks


def test_who_has_left_is_missed(start) -> None:
    _, options = start()
    islands = [options | {"PLURIBUS_COMM_ISLAND": name} for name in "abc"]
    assert set(run_ranks(leaves, 3, environments=islands).values()) == {(1,)}


def unlike(rank: int, n: int) -> str:
    with pytest.raises(errors.CollectiveError) as caught:
        dist.all_reduce(torch.ones(100 + rank // 2))
    return type(caught.value).__name__


def test_ranks_that_sum_unlike_tensors_are_told(start) -> None:
    _, options = start()
    islands = [options | {"PLURIBUS_COMM_ISLAND": name} for name in "abc"]
    assert set(run_ranks(unlike, 3, environments=islands).values()) == {"Mismatch"}


def without(rank: int, n: int) -> tuple[float, int]:
    x = torch.full((1000,), float(rank + 1))
    dist.all_reduce(x)
    return float(x[-1]), len(through_it())


def test_one_that_cannot_be_reached_is_not_used(start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # not listening
        _, options = start()
        there = f"127.0.0.1:{free.getsockname()[1]}"
        mixed = [options, options, options | {"PLURIBUS_COMM_AGGREGATOR": there}]
        assert run_ranks(without, 3, environments=mixed) == dict.fromkeys(range(3), (6.0, 0))


def test_a_wrong_token_and_nonsense_are_not_heard() -> None:
    aggregator, stop = Aggregator(token="right"), threading.Event()
    thread = threading.Thread(target=aggregator.serve, args=(stop,))
    thread.start()
    pack_size = len(pack_hello("wrong", Hello(b"g" * 16, 0, 0, 1, 0, 0, 0)))
    with socket.create_connection(aggregator.address, 5.0) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n".ljust(pack_size, b"x"))
        assert stranger.recv(100) == b""
    stop.set()
    thread.join()


def test_beyond_loopback_it_wants_a_token() -> None:
    with pytest.raises(ConfigError, match="Give a token"):
        Aggregator(host="0.0.0.0")
