"""Which pairs take UDP: asked for, or because the link between their islands wants it."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pluribus.comm.transports import carriers
from pluribus.comm.transports.base import Meeting
from pluribus.comm.transports.congestion import usable
from pluribus.comm.transports.stream import TcpPath
from pluribus.comm.transports.tcp import Tcp

ISLANDS = ["a", "b", "a", "b", "c"]


def chosen(transport: str, congestion: str) -> list[set[int]]:
    """Of every rank, the peers it reaches by UDP."""
    store = dist.HashStore()

    def one(rank: int) -> set[int]:
        peers = tuple(peer for peer in range(len(ISLANDS)) if peer != rank)

        def meeting(name: str) -> Meeting:
            return Meeting(store=dist.PrefixStore(name, store), rank=rank, peers=peers, epoch=0,
                           address="127.0.0.1", token=b"t", timeout=20.0)  # fmt: skip

        control = Tcp(1, "").connect(meeting("control"))
        try:
            return carriers.udp_peers(meeting("x"), transport, congestion, ISLANDS, control)
        finally:
            for (path,) in control.values():
                path.close()

    with ThreadPoolExecutor(len(ISLANDS)) as pool:
        return list(pool.map(one, range(len(ISLANDS))))


@pytest.fixture(autouse=True)
def short_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "TRAIN_SECONDS", 0.04)


def between_islands() -> list[set[int]]:
    return [{p for p in range(5) if ISLANDS[p] != ISLANDS[rank]} for rank in range(5)]


def test_by_hand() -> None:
    assert chosen("tcp", "cubic") == [set()] * 5
    assert chosen("udp", "cubic") == [set(range(5)) - {rank} for rank in range(5)]


def test_a_near_link_without_loss_stays_with_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TcpPath, "round_trip", 1e-4)
    assert chosen("auto", "cubic") == [set()] * 5


def test_a_far_link_takes_udp_where_tcp_slows_down_by_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TcpPath, "round_trip", 0.04)
    assert chosen("auto", "reno") == between_islands()
    if usable("bbr") == "bbr":
        assert chosen("auto", "bbr") == [set()] * 5


def test_a_link_that_loses_packets_takes_udp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TcpPath, "round_trip", 1e-4)
    real, count = socket.socket.sendto, [0]

    def sendto(self: socket.socket, *arguments: object) -> int:
        count[0] += 1
        return 0 if count[0] % 50 == 0 else real(self, *arguments)

    monkeypatch.setattr(socket.socket, "sendto", sendto)
    assert chosen("auto", "reno") == between_islands()


def test_a_far_link_that_lets_no_udp_through_stays_with_tcp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TcpPath, "round_trip", 0.04)
    monkeypatch.setattr(socket.socket, "sendto", lambda *arguments: 0)
    assert chosen("auto", "reno") == [set()] * 5


def test_the_kernel_tells_a_connections_round_trip() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = TcpPath(0, socket.create_connection(server.getsockname()))
        assert 0 < path.round_trip < 1
        path.close()
