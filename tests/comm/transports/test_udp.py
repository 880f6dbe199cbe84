"""UDP paths over real sockets of this machine: frames both ways, strangers, endings."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pluribus.comm.transports.base import DATA, Header, Meeting, Path, PeerGone
from pluribus.comm.transports.flow import FlowOptions
from pluribus.comm.transports.udp import UDP_SEGMENT, UdpTransport

SECONDS = 120.0  # what takes so long hangs


class DictStore:
    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value.encode()
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, SECONDS)
            return self._values[key]


def meet(options: FlowOptions, tokens: tuple[bytes, bytes], timeout: float) -> list[Path]:
    store = DictStore()

    def one(rank: int) -> Path:
        meeting = Meeting(
            store=store, rank=rank, peers=(1 - rank,), epoch=5, address="127.0.0.1",
            token=tokens[rank], timeout=timeout,
        )  # fmt: skip
        (path,) = UdpTransport(options).connect(meeting)[1 - rank]
        return path

    with ThreadPoolExecutor(2) as pool:
        return [f.result() for f in [pool.submit(one, rank) for rank in range(2)]]


@pytest.fixture
def pair() -> Iterator[Callable[..., list[Path]]]:
    made: list[Path] = []

    def make(**settings) -> list[Path]:
        made.extend(meet(FlowOptions(**settings), (b"secret", b"secret"), SECONDS))
        return made

    yield make
    for path in made:
        path.close()


def exchange(paths: list[Path], frames: list[list[bytes]]) -> list[list[tuple[Header, bytes]]]:
    """Each path sends its frames and receives the other's, all driven by one thread."""
    got: list[list[tuple[Header, bytes]]] = [[], []]
    done = [0, 0]

    def finished(end: int) -> None:
        done[end] += 1

    for end, payloads in enumerate(frames):
        for part, payload in enumerate(payloads):
            header = Header(DATA, 5, end, part, len(payload))
            paths[end].queue(header, memoryview(payload), lambda end=end: finished(end))
    begin = time.monotonic()
    while [len(g) for g in got] != [len(frames[1]), len(frames[0])] or sum(done) < sum(
        map(len, frames)
    ):
        assert time.monotonic() - begin < SECONDS
        select.select(paths, [], [], 0.2)
        for end, path in enumerate(paths):
            path.flush()
            header = path.peek()
            if header is None:
                continue
            payload = path.receive()
            if payload is not None:
                got[end].append((header, bytes(payload)))
                path.release()
    return got


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"largest_datagram": 1200, "ring_bytes": 1 << 16},
        {"largest_datagram": 1200, "parity_every": 8},
        {"lossy": 0.02},
    ],
    ids=str,
)
def test_frames_both_ways(pair, settings: dict) -> None:
    paths = pair(**settings)
    chance = random.Random(0)
    frames = [[chance.randbytes(n) for n in (0, 1, 300_000, 70_000, 5)] for _ in range(2)]
    got = exchange(paths, frames)
    for end in range(2):
        sent = frames[1 - end]
        assert [payload for _, payload in got[end]] == sent
        assert [header.part for header, _ in got[end]] == list(range(len(sent)))
        assert {header.operation for header, _ in got[end]} == {1 - end}
    assert paths[0].traffic.sent > sum(map(len, frames[0]))


def test_a_kernel_that_cannot_cut(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = pair(largest_datagram=1200)
    real, refused = socket.socket.sendmsg, []

    def sendmsg(self, buffers, ancillary=(), *rest):
        if any(kind == UDP_SEGMENT for _, kind, _ in ancillary):
            refused.append(1)
            raise OSError(22, "Invalid argument")
        return real(self, buffers, ancillary, *rest)

    monkeypatch.setattr("socket.socket.sendmsg", sendmsg)
    data = random.Random(1).randbytes(200_000)
    assert exchange(paths, [[data], []])[1][0][1] == data
    assert len(refused) == 1


def watch(path: Path) -> None:
    """Drives a path as the engine does, until it fails."""
    begin = time.monotonic()
    while time.monotonic() - begin < SECONDS:
        select.select([path], [], [], 0.2)
        path.flush()
        path.peek()


def test_the_peers_end_is_seen(pair) -> None:
    paths = pair()
    paths[1].close()
    with pytest.raises(PeerGone, match="closed the path"):
        watch(paths[0])


def test_a_peer_that_only_vanishes_is_seen(pair) -> None:
    """No goodbye: the host refuses the next sign of life, as after a SIGKILL."""
    paths = pair()
    paths[1]._flow.goodbye = lambda now: b""  # an empty datagram says nothing
    paths[1].close()
    with pytest.raises(PeerGone, match="refused"):
        watch(paths[0])


def test_another_token_is_not_heard() -> None:
    with pytest.raises(PeerGone, match="does not answer"):
        meet(FlowOptions(), (b"right", b"wrong"), 0.3)
