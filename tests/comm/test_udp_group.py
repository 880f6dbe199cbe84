"""A group whose frames between hosts go by UDP: sums, messages, endings, faults."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import errors
from pluribus.comm.transports.tcp import AdaptingTcpPath
from pluribus.comm.transports.udp import UdpPath

from .ranks import run_ranks

UDP = {"PLURIBUS_COMM_SHARED_MEMORY": "0", "PLURIBUS_COMM_TRANSPORT": "udp"}


def goes_on(members: list[int], epoch: int) -> float:
    group: Any = dist.group.WORLD
    group.reconfigure(members, epoch)
    x = torch.full((300_000,), float(dist.get_rank() + 1))
    dist.all_reduce(x)
    return float(x[123])


def everything(rank: int, n: int) -> tuple[list[float], bool]:
    group: Any = dist.group.WORLD
    mesh = group._engine._mesh
    paths = [path for of_peer in mesh.data.values() for path in of_peer]
    by_udp = all(isinstance(path, UdpPath) for path in [*paths, *mesh.messages.values()])
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(n, 700_001, generator=generator)
    x = parts[rank].clone()
    dist.all_reduce(x)
    assert torch.allclose(x, parts.sum(0), atol=1e-4)
    for size in (1, 1000):
        y = torch.full((size,), float(rank))
        dist.all_reduce(y)
        assert y.sum() == size * sum(range(n))
    given = torch.arange(300_000.0) + rank
    work = dist.isend(given, (rank + 1) % n)
    taken = torch.empty(300_000)
    dist.recv(taken, (rank - 1) % n)
    work.wait()
    assert torch.equal(taken, torch.arange(300_000.0) + (rank - 1) % n)
    return x[::1000].tolist(), by_udp


@pytest.mark.parametrize("more", [{}, {"PLURIBUS_COMM_STREAMS": "2", "PLURIBUS_COMM_FEC": "8"}])
def test_sums_and_messages(more: dict[str, str]) -> None:
    found = run_ranks(everything, 3, environments=[UDP | more] * 3)
    assert all(by_udp for _, by_udp in found.values())
    assert found[0] == found[1] == found[2]


def losing(rank: int, n: int) -> tuple[float, bool]:
    """Every twentieth datagram is lost where it is sent, every hundredth is damaged."""
    real, count = socket.socket.send, [rank]

    def send(self: socket.socket, data: Any, *rest: Any) -> int:
        if self.type != socket.SOCK_DGRAM:
            return real(self, data, *rest)
        count[0] += 1
        if count[0] % 20 == 0:
            return len(data)
        if count[0] % 100 == 1:
            data = bytearray(data)
            data[len(data) // 2] ^= 8
        return real(self, data, *rest)

    socket.socket.send = send  # type: ignore[method-assign]
    for path in dist.group.WORLD._engine._mesh.paths():  # type: ignore[union-attr]
        if isinstance(path, UdpPath):
            path._segments = False  # datagram by datagram
    x = torch.ones(400_000)
    for _ in range(5):
        dist.all_reduce(x)
    resent = sum(path.traffic.resent for path in dist.group.WORLD._engine._mesh.paths())
    return float(x.sum()), resent > 0


def test_lost_and_damaged_datagrams_are_sent_again() -> None:
    assert run_ranks(losing, 2, environments=[UDP] * 2) == dict.fromkeys(
        range(2), (400_000 * 2.0**5, True)
    )


def islands_on_one_host(rank: int, n: int) -> list[str]:
    mesh = dist.group.WORLD._engine._mesh  # type: ignore[union-attr]
    x = torch.ones(100_000)
    dist.all_reduce(x)
    assert (x == n).all()
    return [type(paths[0]).__name__ for _, paths in sorted(mesh.data.items())]


def test_auto_keeps_tcp_on_a_link_without_delay_or_loss() -> None:
    environments = [
        UDP | {"PLURIBUS_COMM_TRANSPORT": "auto", "PLURIBUS_COMM_ISLAND": "ab"[rank % 2]}
        for rank in range(3)
    ]
    found = run_ranks(islands_on_one_host, 3, environments=environments)
    assert set(map(tuple, found.values())) == {(AdaptingTcpPath.__name__,) * 2}


def says_last(rank: int, n: int) -> float:
    """Rank 0 hands its part to the paths and is gone; what it handed over arrives."""
    x = torch.full((2_000_000,), float(rank))
    if rank == 0:
        dist.send(x, 1)
        dist.destroy_process_group()
        return 0.0
    threading.Event().wait(0.2)
    dist.recv(x, 0)
    return float(x.sum())


def test_what_was_sent_arrives_though_the_sender_has_left() -> None:
    assert run_ranks(says_last, 2, environments=[UDP] * 2) == {0: 0.0, 1: 0.0}


def death(rank: int, n: int) -> tuple[str, tuple[int, ...], float]:
    if rank == 1:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    x = torch.ones(400_000)
    try:
        while True:
            dist.all_reduce(x, op=dist.ReduceOp.AVG)
    except errors.CollectiveError as error:
        return type(error).__name__, error.ranks, goes_on([0, 2], 1)


def test_a_death_is_named_and_the_rest_go_on() -> None:
    found = run_ranks(death, 3, environments=[UDP] * 3, silent=[1])
    assert found == dict.fromkeys((0, 2), ("PeerDied", (1,), 3.0))


def any_fault(rank: int, n: int, rounds: int) -> int:
    """Aborts and broken paths at random moments, again and again in the same processes."""
    group: Any = dist.group.WORLD
    ended = 0
    for epoch in range(1, rounds + 1):
        chance = random.Random(epoch)
        culprit, kind = chance.randrange(n), chance.choice(["abort", "path"])
        moment, peer = chance.uniform(0.0, 0.03), chance.randrange(n - 1)
        if rank == culprit:
            threading.Timer(moment, strike, (group, kind, peer)).start()
        try:
            while True:
                works = [dist.all_reduce(torch.ones(s), async_op=True) for s in (10, 400_000)]
                for work in works:
                    work.wait()
        except errors.CollectiveError:
            ended += 1
        assert goes_on(list(range(n)), epoch) == n * (n + 1) / 2
        group._store.add(f"there{epoch}", 1)  # the next fault must not strike a slower rank's sum
        while group._store.add(f"there{epoch}", 0) < n:
            threading.Event().wait(0.001)
    return ended


def strike(group: Any, kind: str, peer: int) -> None:
    if kind == "abort":
        group.abort()
    else:
        list(group._engine._mesh.data.values())[peer][0]._socket.shutdown(socket.SHUT_RDWR)


def test_random_faults_never_hang() -> None:
    found = run_ranks(any_fault, 3, 8, environments=[UDP] * 3)
    assert set(found.values()) == {8}
