"""How two processes connect: over TCP or a Unix socket, and only with the group's token."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable

from pluribus.comm.transports.base import Meeting, PeerGone

_HELLO = struct.Struct("<IIHH32s")  # rank, epoch, lane, lanes, token
_HELLO_SECONDS = 5.0


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
        missing = [peer for peer in meeting.peers if peer > meeting.rank]
        while any(len(found[peer]) < lanes for peer in missing):
            listener.settimeout(max(0.001, until - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                late = next(peer for peer in missing if len(found[peer]) < lanes)
                raise PeerGone(late, f"it did not connect in {meeting.timeout:.0f} s") from None
            caller = _welcome(meeting, connection, lanes)
            if caller is None or caller[0] not in missing:
                connection.close()
                continue
            prepare(connection)
            found[caller[0]][caller[1]] = connection
        opened.pop_all()
    return {peer: [known[lane] for lane in range(lanes)] for peer, known in found.items()}


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
    address, _, port = where.partition(" ")
    limit = max(0.001, until - time.monotonic())
    try:
        if port:
            connection = socket.create_connection((address, int(port)), limit)
        else:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(limit)
            connection.connect(f"\0{address}")
        token = meeting.token.ljust(32, b"\0")
        connection.sendall(_HELLO.pack(meeting.rank, meeting.epoch, lane, lanes, token))
    except OSError as error:
        raise PeerGone(peer, f"cannot connect to {where}: {error}") from error
    return connection


def _welcome(meeting: Meeting, connection: socket.socket, lanes: int) -> tuple[int, int] | None:
    """(rank, lane) of a caller that may come in."""
    connection.settimeout(_HELLO_SECONDS)
    hello = b""
    try:
        while len(hello) < _HELLO.size:
            more = connection.recv(_HELLO.size - len(hello))
            if not more:
                return None
            hello += more
    except OSError:
        return None
    rank, epoch, lane, their_lanes, token = _HELLO.unpack(hello)
    known = hmac.compare_digest(token, meeting.token.ljust(32, b"\0"))
    return (rank, lane) if known and epoch == meeting.epoch and their_lanes == lanes else None
