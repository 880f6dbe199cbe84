"""Paths carry frames whole and in order, hold a sender back, and ask for the token."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from pluribus.comm.options import Options
from pluribus.comm.transports import congestion, connections
from pluribus.comm.transports.base import (
    DATA,
    CorruptFrame,
    Header,
    Meeting,
    Path,
    PeerGone,
    Transport,
)
from pluribus.comm.transports.shared import ARENA_BYTES, SharedMemory
from pluribus.comm.transports.tcp import Tcp
from pluribus.core.errors import ConfigError


def meeting(store: dist.Store, rank: int, token: bytes = b"t", timeout: float = 60.0) -> Meeting:
    return Meeting(store=store, rank=rank, peers=(1 - rank,), epoch=0, address="127.0.0.1",
                   token=token, timeout=timeout)  # fmt: skip


def connected(transport: Transport) -> Iterator[tuple[Path, Path]]:
    store, made = dist.HashStore(), {}

    def join(rank: int) -> None:
        made[rank] = transport.connect(meeting(store, rank))[1 - rank][0]

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield made[0], made[1]
    made[0].close()
    made[1].close()


@pytest.fixture(params=[Tcp, SharedMemory])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    yield from connected(request.param())


@pytest.fixture
def tcp() -> Iterator[tuple[Path, Path]]:
    yield from connected(Tcp())


def wait(path: Path) -> None:
    assert select.select([path], [], [], 60.0)[0], "nothing came"


def test_frames_arrive_whole_and_in_order(pair: tuple[Path, Path]) -> None:
    one, other = pair
    chance = random.Random(0)
    sizes = [chance.choice([0, 1, 63, 5000, 300_000, 1 << 20]) for _ in range(60)]
    frames = [chance.randbytes(size) for size in sizes]
    done: list[int] = []
    for number, frame in enumerate(frames):
        header = Header(DATA, 0, 7, number, len(frame))
        one.queue(header, memoryview(frame), lambda number=number: done.append(number))
    for number, frame in enumerate(frames):
        while (header := other.peek()) is None:
            one.flush()
            one.peek()  # takes back what the other end has used up
        into = memoryview(bytearray(len(frame))) if number % 2 else None
        while (payload := other.receive(into)) is None:
            one.flush()
        assert header == Header(DATA, 0, 7, number, len(frame))
        assert bytes(payload) == frame
        other.release()
    assert done == list(range(len(frames)))
    assert other.traffic.received >= sum(sizes)


def test_a_receiver_that_does_not_look_holds_the_sender_back(pair: tuple[Path, Path]) -> None:
    one, _ = pair
    frame = memoryview(bytes(1 << 20))
    done: list[int] = []
    for number in range(64):
        one.queue(Header(DATA, 0, 1, number, len(frame)), frame, lambda: done.append(1))
    for _ in range(100):
        one.flush()
    assert len(done) < 64
    assert one.traffic.sent < 64 * len(frame)
    assert 64 * len(frame) > ARENA_BYTES


def test_an_end_is_seen_after_what_was_sent(pair: tuple[Path, Path]) -> None:
    one, other = pair
    one.queue(Header(DATA, 0, 1, 0, 5), memoryview(b"hello"))
    one.flush()
    one.close()
    wait(other)
    assert other.peek() is not None
    payload = other.receive()
    assert payload is not None
    assert bytes(payload) == b"hello"
    other.release()
    wait(other)
    with pytest.raises(PeerGone):
        other.peek()


def test_nobody_comes_in_without_the_token() -> None:
    store = dist.HashStore()
    caught = []

    def listen() -> None:
        try:
            Tcp().connect(meeting(store, 0, timeout=3.0))
        except PeerGone as error:
            caught.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    host, port = store.get("0").decode().split()
    with socket.create_connection((host, int(port))) as rogue:
        rogue.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        (path,) = Tcp().connect(meeting(store, 1, token=b"wrong"))[0]
        thread.join()
        with pytest.raises(PeerGone):
            path.peek()
        path.close()
    assert "did not connect" in str(caught[0])


@pytest.mark.skipif(
    [*map(congestion.usable, ("bbr", "cubic"))] != ["bbr", "cubic"], reason="not in this kernel"
)
@pytest.mark.parametrize(("asked", "used"), [("auto", ["bbr", "cubic", "bbr"]), ("bbr", ["bbr"])])
def test_a_connection_goes_over_to_what_suits_its_link(asked: str, used: list[str]) -> None:
    for path, _ in connected(Tcp(1, asked)):
        found = []
        for loss in (None, 0.0, 0.2):
            if loss is not None:
                path.adapt(3e-4, 12.5e6, loss)
            found.append(congestion.used(path._socket))
        path.close()
        path.adapt(3e-4, 12.5e6, 0.0)  # too late, and says nothing
        assert found == used * (3 // len(used))


def test_callers_that_say_nothing_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HELLO_SECONDS", 600.0)
    store, made = dist.HashStore(), {}
    thread = threading.Thread(target=lambda: made.update(Tcp().connect(meeting(store, 0))))
    thread.start()
    host, port = store.get("0").decode().split()
    silent = [socket.create_connection((host, int(port))) for _ in range(5)]
    silent[0].sendall(b"h")
    (path,) = Tcp().connect(meeting(store, 1))[0]
    thread.join(30.0)
    assert list(made) == [1]
    for one in (path, made[1][0], *silent):
        one.close()


def test_options_come_from_the_environment() -> None:
    found = Options.from_environment({"PLURIBUS_COMM_STREAMS": "4", "PLURIBUS_COMM_VERIFY": "1"})
    assert (found.streams, found.verify, found.codec) == (4, True, "none")
    with pytest.raises(ConfigError, match="PLURIBUS_COMM_STREEMS"):
        Options.from_environment({"PLURIBUS_COMM_STREEMS": "4"})
    with pytest.raises(ConfigError, match="is not a int"):
        Options.from_environment({"PLURIBUS_COMM_STREAMS": "four"})
    with pytest.raises(ConfigError, match="chunk_bytes"):
        Options(chunk_bytes=-1)


class BadWire:
    """A socket that turns over a bit in six of the first 120 sends."""

    def __init__(self, connection: socket.socket, seed: int) -> None:
        self._connection, self._chance = connection, random.Random(seed)
        self._bad = set(self._chance.sample(range(120), 6))
        self._sends = -1

    def sendmsg(self, parts: list[memoryview]) -> int:
        data = bytearray(b"".join(parts))
        if self._sends + 1 in self._bad:
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
        sent = self._connection.send(data)
        self._sends += 1
        return sent

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_with_other_bits_is_sent_again(tcp: tuple[Path, Path], seed: int) -> None:
    one, other = tcp
    one._socket = BadWire(one._socket, seed)
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, 63, 5000, 70_000, 1 << 19]) for _ in range(120)]
    frames = [bytearray(chance.randbytes(size)) for size in sizes]
    done: list[int] = []
    for number, frame in enumerate(frames):
        sent = memoryview(bytearray(frame))

        def spoil(number: int = number, sent: memoryview = sent) -> None:
            sent[:] = bytes(len(sent))  # the caller may do that once it is told
            done.append(number)

        one.queue(Header(DATA, 0, 7, number, len(frame)), sent, spoil)
    kept = 0
    for number, frame in enumerate(frames):
        into = memoryview(bytearray(len(frame))) if number % 2 else None
        payload = None
        while payload is None:
            one.flush()
            try:
                if (header := other.peek()) is not None:
                    payload = other.receive(into)
            except CorruptFrame as error:
                one.resend(error.again)
            if (here := other.receipt()) is not None:
                one.acknowledge(here)
            kept = max(kept, sum(len(old.payload) for old in one._kept))
        assert header == Header(DATA, 0, 7, number, len(frame))
        assert payload == frame
        other.release()
    assert done == list(range(len(frames)))
    assert one.traffic.resent
    assert kept < 20 << 20


def test_a_wire_that_spoils_everything_is_given_up(tcp: tuple[Path, Path]) -> None:
    one, other = tcp
    one.queue(Header(DATA, 0, 1, 0, 9000), memoryview(bytes(9000)))
    asked: list[int | None] = [0]
    while asked[-1] is not None:
        one.flush()
        wait(other)
        try:
            if other.peek() is not None:
                other._crc ^= 1  # as if the payload had come with other bits
                other.receive()
        except CorruptFrame as error:
            asked.append(error.again)
            if error.again is not None:
                one.resend(error.again)
    assert asked[1:-1] == [0] * 8
