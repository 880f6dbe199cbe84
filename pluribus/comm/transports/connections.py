"""How two processes connect: over TCP or a Unix socket, and only with the group's token."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable

from pluribus.comm.porter import ask
from pluribus.comm.transports.base import Meeting, PeerGone

_HELLO = struct.Struct("<IIHHi32s")  # rank, epoch, lane, lanes, by way of, token
_HELLO_SECONDS = 5.0
_CALL_SECONDS = 60.0  # a listener's kernel answers at once; lost SYNs go out again until then
_DIRECT_SECONDS = 5.0  # before another way is tried
_LOOK_SECONDS = 0.02


def meet(
    meeting: Meeting,
    lanes: int,
    prepare: Callable[[socket.socket], None] = lambda _: None,
    local: bool = False,
) -> dict[int, list[socket.socket]]:
    """Connects to all peers, ``lanes`` times each; every connection shows the token.

    Args:
        prepare: called with each new connection.
        local: over Unix sockets, to peers on this host, instead of TCP.

    Raises:
        PeerGone: a peer did not come in time.
    """
    until = time.monotonic() + meeting.timeout
    found: dict[int, dict[int, socket.socket]] = {peer: {} for peer in meeting.peers}
    with contextlib.ExitStack() as opened, _listen(meeting, local) as listener:
        for lanes_of_peer in found.values():
            opened.callback(_close_all, lanes_of_peer)
        for peer in meeting.peers:
            if peer > meeting.rank:
                continue
            where = meeting.store.get(f"{peer}").decode()
            for lane in range(lanes):
                found[peer][lane] = _call(meeting, peer, where, lane, lanes, until)
                prepare(found[peer][lane])
        missing = {peer for peer in meeting.peers if peer > meeting.rank}
        door = opened.enter_context(_Door(listener))
        while any(len(found[peer]) < lanes for peer in missing):
            for connection, hello in door.callers():
                caller = _welcome(meeting, hello, lanes)
                if caller is None or caller[0] not in missing:
                    connection.close()
                    continue
                prepare(connection)
                found[caller[0]][caller[1]] = connection
            meeting.check()
            if time.monotonic() > until:
                late = next(peer for peer in missing if len(found[peer]) < lanes)
                raise PeerGone(late, f"it did not connect in {meeting.timeout:.0f} s")
        door.close()
        opened.pop_all()
    return {peer: [known[lane] for lane in range(lanes)] for peer, known in found.items()}


class _Door:
    """Callers at a listener: whoever is slow to say who it is keeps nobody else waiting."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._waiting: dict[int, tuple[socket.socket, bytearray, float]] = {}
        listener.setblocking(False)

    def callers(self) -> list[tuple[socket.socket, bytes]]:
        """Those that have said all of their hello meanwhile."""
        ready = []
        for descriptor, _ in self._poll.poll(1000 * _LOOK_SECONDS):
            if descriptor == self._listener.fileno():
                self._let_in()
                continue
            connection, hello, _ = self._waiting[descriptor]
            with contextlib.suppress(OSError):
                more = connection.recv(_HELLO.size - len(hello))
                hello += more
                if more and len(hello) < _HELLO.size:
                    continue
            self._poll.unregister(descriptor)
            del self._waiting[descriptor]
            if len(hello) < _HELLO.size:
                connection.close()
                continue
            connection.settimeout(_HELLO_SECONDS)
            ready.append((connection, bytes(hello)))
        now = time.monotonic()
        for descriptor, (connection, _, until) in list(self._waiting.items()):
            if now > until:
                self._poll.unregister(descriptor)
                connection.close()
                del self._waiting[descriptor]
        return ready

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):  # nobody more
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                until = time.monotonic() + _HELLO_SECONDS
                self._waiting[connection.fileno()] = (connection, bytearray(), until)
                self._poll.register(connection, select.POLLIN)

    def close(self) -> None:
        for connection, _, _ in self._waiting.values():
            connection.close()
        self._waiting.clear()

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_all(connections: dict[int, socket.socket]) -> None:
    for connection in connections.values():
        connection.close()


def _listen(meeting: Meeting, local: bool) -> socket.socket:
    if local:
        name = f"pluribus-{secrets.token_hex(16)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0{name}")  # abstract: no file to leave behind
        listener.listen(256)
        where = name
    else:
        family = socket.AF_INET6 if ":" in meeting.address else socket.AF_INET
        listener = socket.create_server((meeting.address, 0), family=family, backlog=256)
        where = f"{meeting.address} {listener.getsockname()[1]}"
    meeting.store.set(f"{meeting.rank}", where)
    return listener


def _call(
    meeting: Meeting, peer: int, where: str, lane: int, lanes: int, until: float
) -> socket.socket:
    limit = min(_CALL_SECONDS, max(0.001, until - time.monotonic()))
    try:
        if " " in where:
            connection = _reach(meeting, peer, where, limit)
        else:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(limit)
            connection.connect(f"\0{where}")
        token = meeting.token.ljust(32, b"\0")
        via = meeting.via.get(peer, -1)
        connection.sendall(_HELLO.pack(meeting.rank, meeting.epoch, lane, lanes, via, token))
    except OSError as error:
        raise PeerGone(peer, f"cannot connect to {where}: {error}") from error
    return connection


def _reach(meeting: Meeting, peer: int, where: str, limit: float) -> socket.socket:
    """A connection, if need be by way of another member."""
    address, _, port = where.partition(" ")
    others = [rank for rank in meeting.doors if rank not in (peer, meeting.rank)]
    if peer not in meeting.via:
        try:
            patience = min(limit, _DIRECT_SECONDS) if others else limit
            return socket.create_connection((address, int(port)), patience)
        except OSError as error:
            if not others:
                raise
            missed = error
    # Each pair begins elsewhere, so that not all go by way of the same member.
    size = max(*meeting.doors, meeting.rank) + 1
    others.sort(key=lambda rank: (rank - meeting.rank - peer) % size)
    for rank in [meeting.via[peer]] if peer in meeting.via else others:
        with contextlib.suppress(OSError):
            connection = ask(meeting.doors[rank], meeting.token, where, _DIRECT_SECONDS)
            meeting.via[peer] = rank
            return connection
        meeting.check()
    if peer in meeting.via:
        raise ConnectionError(f"rank {meeting.via[peer]} does not reach it any more")
    raise missed


def _welcome(meeting: Meeting, hello: bytes, lanes: int) -> tuple[int, int] | None:
    """(rank, lane) of a caller that may come in."""
    rank, epoch, lane, their_lanes, via, token = _HELLO.unpack(hello)
    known = hmac.compare_digest(token, meeting.token.ljust(32, b"\0"))
    fits = epoch == meeting.epoch and their_lanes == lanes and lane < lanes
    if not (known and fits):
        return None
    if via >= 0:
        meeting.via[rank] = via
    return rank, lane
