"""TCP: several connections to each peer, each with the congestion control asked for."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import secrets
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pluribus.comm.transports.base import (
    HEADER_BYTES,
    CorruptFrame,
    Header,
    Meeting,
    Path,
    PeerGone,
    Traffic,
    Transport,
    intact,
    pack,
    unpack,
)

_READ_AHEAD = 64 * 1024  # small frames come many to a system call
_HELLO = struct.Struct("<IIHH32s")  # rank, epoch, lane, lanes, token
_HELLO_SECONDS = 5.0
_RTT_OFFSET = 68  # of tcpi_rtt in struct tcp_info, microseconds; linux/tcp.h
_RESENT_OFFSET, _SENT_OFFSET = 100, 136  # tcpi_total_retrans, tcpi_segs_out in linux/tcp.h
_TCP_CLOSE = 7  # linux/tcp_states.h: the peer has refused what was still on its way


class TcpPath(Path):
    """One connection.

    Args:
        checked: whether its frames carry a checksum.
    """

    def __init__(self, peer: int, connection: socket.socket, checked: bool = True) -> None:
        connection.setblocking(False)
        self.peer = peer
        self.traffic = Traffic()
        self._socket = connection
        self._checked = checked
        self._out: deque[tuple[list[memoryview], Callable[[], None] | None]] = deque()
        self._ahead = memoryview(bytearray(_READ_AHEAD))
        self._start = self._stop = 0
        self._packed = b""
        self._header: Header | None = None
        self._own = bytearray()
        self._at = 0  # bytes of the payload that are in place
        self._broken = False  # nothing can be sent any more

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def round_trip(self) -> float:
        """Seconds, as the kernel has measured it; 0 where it does not tell."""
        info = getattr(socket, "TCP_INFO", None)
        if info is None or self._socket.family == getattr(socket, "AF_UNIX", None):
            return 0.0
        data = self._socket.getsockopt(socket.IPPROTO_TCP, info, _RTT_OFFSET + 4)
        return int.from_bytes(data[_RTT_OFFSET:], sys.byteorder) / 1e6

    @property
    def packets(self) -> tuple[int, int]:
        info = getattr(socket, "TCP_INFO", None)
        if info is None or self._socket.family == getattr(socket, "AF_UNIX", None):
            return 0, 0
        data = self._socket.getsockopt(socket.IPPROTO_TCP, info, _SENT_OFFSET + 4)
        if len(data) < _SENT_OFFSET + 4:  # a kernel that does not tell
            return 0, 0
        resent, sent = (
            int.from_bytes(data[at : at + 4], sys.byteorder)
            for at in (_RESENT_OFFSET, _SENT_OFFSET)
        )
        return resent, sent

    @property
    def wants_write(self) -> bool:
        return bool(self._out) and not self._broken

    @property
    def delivered(self) -> bool:
        return self._broken or (not self._out and not _unacknowledged(self._socket))

    def queue(
        self, header: Header, payload: memoryview, done: Callable[[], None] | None = None
    ) -> None:
        packed = memoryview(pack(header, payload, self._checked))
        self._out.append(([packed, payload] if len(payload) else [packed], done))

    def withdraw(self) -> None:
        self._out.clear()

    def flush(self) -> None:
        while self._out and not self._broken:
            parts, done = self._out[0]
            try:
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                return
            except OSError:
                self._broken = True
                return
            self.traffic.sent += sent
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][sent:]
                continue
            self._out.popleft()
            if done is not None:
                done()

    def peek(self) -> Header | None:
        if self._header is None:
            if self._stop - self._start < HEADER_BYTES and not self._fill():
                return None
            self._packed = bytes(self._ahead[self._start : self._start + HEADER_BYTES])
            self._start += HEADER_BYTES
            self._at = 0
            try:
                self._header = unpack(self._packed)
            except ValueError as error:
                raise CorruptFrame(self.peer, str(error)) from error
        return self._header

    def receive(self, into: memoryview | None = None) -> memoryview | None:
        assert self._header is not None
        size = self._header.num_bytes
        if into is None and not self._at and self._stop - self._start >= size:
            payload = self._ahead[self._start : self._start + size]
            self._start += size
            return self._checked_payload(payload)
        if into is None:
            if len(self._own) < size:
                self._own = bytearray(size)
            into = memoryview(self._own)[:size]
        known = min(self._stop - self._start, size - self._at)
        if known:
            into[self._at : self._at + known] = self._ahead[self._start : self._start + known]
            self._start += known
            self._at += known
        while self._at < size:
            try:
                count = self._socket.recv_into(into[self._at :])
            except BlockingIOError:
                return None
            except OSError as error:
                raise self._gone(error) from error
            if not count:
                raise self._gone()
            self._at += count
        return self._checked_payload(into)

    def release(self) -> None:
        assert self._header is not None
        self.traffic.received += HEADER_BYTES + self._header.num_bytes
        self._header = None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _checked_payload(self, payload: memoryview) -> memoryview:
        if not intact(self._packed, payload):
            raise CorruptFrame(self.peer, f"a frame of {len(payload)} bytes came with other bits")
        return payload

    def _fill(self) -> bool:
        """Reads ahead; whether a whole header is there now."""
        left = self._stop - self._start
        self._ahead[:left] = self._ahead[self._start : self._stop]
        self._start, self._stop = 0, left
        try:
            count = self._socket.recv_into(self._ahead[left:])
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone(error) from error
        if not count:
            raise self._gone()
        self._stop += count
        return self._stop >= HEADER_BYTES

    def _gone(self, error: OSError | None = None) -> PeerGone:
        return PeerGone(self.peer, str(error) if error else "the connection was closed")


class Tcp(Transport):
    """Connections between all pairs; the higher rank calls the lower.

    Args:
        streams: connections to each peer.
        congestion: congestion control to ask the kernel for, where it has it ("bbr" keeps its
            rate under loss; "" leaves the host's default).
        checked: whether frames carry a checksum.
    """

    name: ClassVar[str] = "tcp"

    def __init__(self, streams: int = 1, congestion: str = "bbr", checked: bool = True) -> None:
        self.streams = streams
        self.congestion = congestion
        self.checked = checked

    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        connections = meet(meeting, self.streams, self._prepare)
        return {
            peer: [TcpPath(peer, connection, self.checked) for connection in lanes]
            for peer, lanes in connections.items()
        }

    def _prepare(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        choose = getattr(socket, "TCP_CONGESTION", None)
        if self.congestion and choose is not None:
            with contextlib.suppress(OSError):  # this kernel has no such control
                connection.setsockopt(socket.IPPROTO_TCP, choose, self.congestion.encode())


def usable(congestion: str) -> str:
    """The congestion control a connection gets that asks for this one; empty if unknown."""
    choose = getattr(socket, "TCP_CONGESTION", None)
    if choose is None:
        return ""
    with socket.socket() as trial:
        if congestion:
            with contextlib.suppress(OSError):
                trial.setsockopt(socket.IPPROTO_TCP, choose, congestion.encode())
        return trial.getsockopt(socket.IPPROTO_TCP, choose, 16).rstrip(b"\0").decode()


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


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that the peer's host does not have yet, and may still get."""
    try:
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            return 0
        left = fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):  # closed, or a system that cannot tell
        return 0
    return int.from_bytes(left, sys.byteorder)


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
