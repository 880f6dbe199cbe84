"""Ranks that cannot reach each other talk by way of a third, and know who it was when that dies."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import errors

from .ranks import run_ranks
from .test_collectives import everything
from .test_faults import busy

PLACES = [
    {"PLURIBUS_COMM_SHARED_MEMORY": "0", "PLURIBUS_COMM_ADDRESS": f"127.0.0.{rank + 1}"}
    for rank in range(4)
]


def cut_off(addresses: Sequence[str]) -> None:
    """No way from this process to these addresses, as by a firewall or for want of a route."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def unreachable(self: socket.socket, address: Any) -> None:
        if address[0] in addresses:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        connect(self, address)

    def unreachable_ex(self: socket.socket, address: Any) -> int:
        return errno.EHOSTUNREACH if address[0] in addresses else connect_ex(self, address)

    socket.socket.connect = unreachable  # type: ignore[method-assign]
    socket.socket.connect_ex = unreachable_ex  # type: ignore[method-assign]


def apart(rank: int) -> None:
    if rank in (1, 3):
        cut_off([f"127.0.0.{5 - rank}"])  # of the other one


def all_of_it(rank: int, n: int) -> dict[int, int]:
    apart(rank)
    group: Any = dist.new_group(list(range(n)))  # WORLD was made before they were apart
    dist.group.WORLD = group
    everything(rank, n)
    if rank in (1, 3):
        sent, came = torch.full((3_000_000,), float(rank)), torch.empty(3_000_000)
        work = dist.isend(sent, 4 - rank, tag=5)
        dist.recv(came, 4 - rank, tag=5)
        work.wait()
        assert (came == 4 - rank).all()
    return dict(group._engine._mesh.via)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_collectives_and_messages_over_a_partial_mesh(transport: str) -> None:
    more = {"PLURIBUS_COMM_TRANSPORT": transport}
    found = run_ranks(all_of_it, 4, environments=[place | more for place in PLACES])
    assert found[0] == found[2] == {}
    (way,), (back,) = found[1].items(), found[3].items()
    assert way[0] == 3
    assert back == (1, way[1])
    assert way[1] in (0, 2)


def loses_its_way(rank: int, n: int) -> tuple[tuple[int, ...], float]:
    apart(rank)
    group: Any = dist.new_group(list(range(n)))
    via = torch.tensor(list(group._engine._mesh.via.values()) if rank == 1 else [0])
    dist.broadcast(via, 1)
    if rank == via.item():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    dist.group.WORLD = group
    with pytest.raises(errors.PeerDied) as caught:
        busy()
    assert caught.value.ranks == (via.item(),), caught.value
    left = [r for r in range(n) if r != via.item()]
    group.reconfigure(left, 1)
    assert set(group._engine._mesh.via.values()) == (
        {left.index(2 - via.item())} if rank % 2 else set()
    )
    x = torch.full((300_000,), float(rank))
    dist.all_reduce(x)
    return caught.value.ranks, float(x[7])


def test_the_death_of_who_passes_on_is_told_from_the_peers() -> None:
    relay = 0  # (0 - 1 - 3) and (2 - 1 - 3) modulo 4: rank 0 comes first
    found = run_ranks(loses_its_way, 4, environments=PLACES, silent=[relay])
    assert set(found.values()) == {((relay,), 6.0)}


def alone(rank: int, n: int) -> str:
    if rank == 2:
        cut_off(["127.0.0.1", "127.0.0.2"])
    else:
        cut_off(["127.0.0.3"])
    with pytest.raises(errors.PeerDied) as caught:
        dist.new_group(list(range(n)))
    return str(caught.value)


def test_who_is_reached_by_nobody_is_named_at_once() -> None:
    found = run_ranks(alone, 3, environments=PLACES[:3])
    assert all("cannot connect" in said for said in found.values()), found
