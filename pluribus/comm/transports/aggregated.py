"""A rank's path to an aggregator's stream: chunks go out, their sums come back in the same order.

When the aggregator is lost, every member turns to the standby, an aggregator in rank 0's process,
and goes on where it was: it keeps what it sent until the sum is here, and the last `SLOTS` sums for
a member that missed one. A member sends chunk k only after the sum of k − SLOTS, to which all had
contributed, so nobody can miss more than that; and as nobody adds up again what somebody has, all
get the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pluribus.comm.aggregator import DEAD_MILLISECONDS, SLOTS, Aggregator, Hello, pack_hello
from pluribus.comm.transports.base import (
    GOODBYE,
    Header,
    Meeting,
    Path,
    PeerGone,
    Traffic,
    TransportError,
)
from pluribus.comm.transports.stream import TcpPath
from pluribus.comm.transports.tcp import prepare

_CALL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an aggregator listens, and what opens it."""

    host: str
    port: int
    token: str

    def call(self, hello: Hello, congestion: str) -> socket.socket:
        """A new connection.

        Raises:
            OSError: nobody is there.
        """
        connection = socket.create_connection((self.host, self.port), _CALL_SECONDS)
        prepare(connection, congestion, DEAD_MILLISECONDS)
        connection.sendall(pack_hello(self.token, hello))
        return connection


class AggregatorPath(Path):
    """One stream; see `Path`.

    Args:
        hello: as whom.
        standby: where to turn when the first place is lost.
        closing: called by `close`.

    Attributes:
        peer: -1 as long as all goes well; then the rank that has left or died.

    Raises:
        OSError: nobody is at the first place.
    """

    def __init__(
        self,
        hello: Hello,
        place: Place,
        standby: Place,
        congestion: str = "",
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        self.peer = -1
        self._closing = closing
        self._hello, self._standby, self._congestion = hello, standby, congestion
        self._inner = TcpPath(-1, place.call(hello, congestion))
        self._backlog: deque[tuple[Header, memoryview, Callable[[], None] | None]] = deque()
        self._out: deque[tuple[Header, memoryview]] = deque()  # copies of what has no sum yet
        self._kept: deque[tuple[Header, np.ndarray]] = deque(maxlen=SLOTS)
        self._sums = 0  # that have come
        self._place: np.ndarray | None = None  # of the sum that is coming
        self._ready: tuple[Header, np.ndarray] | None = None
        self._withdrawn = self._fell_back = False

    @property
    def traffic(self) -> Traffic:  # type: ignore[override]
        return self._inner.traffic

    @property
    def needs_all(self) -> bool:
        return self._fell_back  # the standby does not know who has left

    def fileno(self) -> int:
        return self._inner.fileno()

    @property
    def wants_write(self) -> bool:
        return self._inner.wants_write

    @property
    def delivered(self) -> bool:
        return self.peer >= 0 or not (self._backlog or self._out)

    def queue(
        self, header: Header, payload: memoryview, done: Callable[[], None] | None = None
    ) -> None:
        self._backlog.append((header, payload, done))

    def flush(self) -> None:
        finished = []
        while self._backlog and len(self._out) < SLOTS:
            header, payload, done = self._backlog.popleft()
            # The sum takes the chunk's place, but the chunk may have to be sent again.
            self._out.append((header, memoryview(bytes(payload))))
            self._inner.queue(*self._out[-1])
            if done is not None:
                finished.append(done)
        self._inner.flush()
        for done in finished:
            done()

    def withdraw(self) -> None:
        self._withdrawn = True
        self._backlog.clear()
        self._out.clear()
        self._inner.withdraw()

    def peek(self) -> Header | None:
        if self._ready is None:
            try:
                self._take()
            except TransportError as error:
                self._fall_back(error)
        return None if self._ready is None else self._ready[0]

    def _take(self) -> None:
        """The next sum, once all of it is here."""
        header = self._inner.peek()
        if header is None:
            return
        if header.kind == GOODBYE:
            self.peer = header.operation
            raise PeerGone(self.peer, f"rank {self.peer} has left the aggregator")
        if self._place is None:
            self._place = np.empty(header.num_bytes, np.uint8)
        if self._inner.receive(memoryview(self._place)) is None:
            return
        self._inner.release()
        self._sums += 1
        self._ready, self._place = (header, self._place), None
        self._kept.append(self._ready)
        if self._out:
            self._out.popleft()
        self.flush()

    def receive(self, into: memoryview | None = None) -> memoryview | None:
        assert self._ready is not None
        if into is None:
            return memoryview(self._ready[1])
        into[:] = memoryview(self._ready[1])
        return into

    def release(self) -> None:
        self._ready = None

    def _fall_back(self, error: TransportError) -> None:
        """Goes on at the standby, under the descriptor that the engine knows."""
        if self.peer >= 0 or self._withdrawn:
            raise PeerGone(max(self.peer, 0), str(error)) from error
        hello = self._hello._replace(first=self._sums, kept=len(self._kept))
        try:
            if self._fell_back:
                raise error
            self._fell_back = True
            connection = self._standby.call(hello, self._congestion)
        except (OSError, TransportError) as lost:
            self.peer = 0  # the standby was in its process
            raise PeerGone(0, f"its aggregator is gone: {lost}") from lost
        old = self._inner._socket
        os.dup2(connection.fileno(), old.fileno())
        connection.close()
        self._inner, self._place = TcpPath(-1, old), None
        for header, kept in self._kept:
            self._inner.queue(header, memoryview(kept))
        for header, payload in self._out:
            self._inner.queue(header, payload)
        self._inner.flush()

    def close(self) -> None:
        if self._inner.fileno() >= 0:
            with contextlib.suppress(TransportError, OSError):
                self._inner.queue(Header(GOODBYE, 0, 0, 0, 0), memoryview(b""))
                self._inner.flush()
        self._inner.close()
        self._closing()


def connect(
    meeting: Meeting, where: str, token: str, congestion: str, streams: Sequence[Sequence[int]]
) -> dict[int, AggregatorPath]:
    """Paths to the aggregator's streams that this rank contributes to; every member calls it.

    Args:
        where: ``"host:port"``.
        token: of the aggregator.
        streams: the ranks that contribute to each.

    Returns:
        Stream → path; nothing on any rank if one of them does not reach the aggregator.
    """
    host, _, port = where.rpartition(":")
    own = meeting.token.decode()
    stop = threading.Event()
    if meeting.rank == 0:
        standby = Aggregator(meeting.address, 0, own)
        threading.Thread(target=standby.serve, args=(stop,), name="standby", daemon=True).start()
        meeting.store.set("standby", str(standby.address[1]))
        meeting.store.set("standby-host", standby.address[0])
    second = Place(
        meeting.store.get("standby-host").decode(), int(meeting.store.get("standby")), own
    )
    group = hashlib.blake2b(
        meeting.epoch.to_bytes(8, "little"), key=meeting.token[:64], digest_size=16
    ).digest()
    paths: dict[int, AggregatorPath] = {}
    problem = ""
    for number, members in enumerate(streams):
        if meeting.rank not in members or problem:
            continue
        member = members.index(meeting.rank)
        hello = Hello(group, number, member, len(members), meeting.rank, 0, 0)
        closing = stop.set if meeting.rank == 0 and not paths else lambda: None
        try:
            paths[number] = AggregatorPath(
                hello, Place(host.strip("[]"), int(port), token), second, congestion, closing
            )
        except OSError as error:
            problem = f"the aggregator at {where} is not in use: {error}"
    meeting.store.set(f"reached/{meeting.rank}", problem)
    problems = [meeting.store.get(f"reached/{rank}") for rank in (meeting.rank, *meeting.peers)]
    if not any(problems):
        return paths
    for path in paths.values():
        path.close()
    stop.set()
    if problem:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return {}
