"""Shared memory between processes of one host: chunks in an arena, their headers over a socket.

Each direction has an arena that its sender owns, anonymous memory whose descriptor is passed over
the socket: nothing to clean up after a crash. The socket carries a header and the chunk's place;
the receiver uses the chunk where it lies and answers when it is done. The kernel thereby orders
memory and tells when a process dies.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pluribus.comm.transports.base import (
    HEADER_BYTES,
    PRIVATE,
    Header,
    Meeting,
    Path,
    PeerGone,
    Traffic,
    Transport,
    pack,
    unpack,
)
from pluribus.comm.transports.connections import meet
from pluribus.core.units import MIB

_PLACE = struct.Struct("<Q")
_RECORD = HEADER_BYTES + _PLACE.size
_USED = pack(Header(PRIVATE, 0, 0, 0, 0), checked=False) + _PLACE.pack(0)
ARENA_BYTES = 8 * MIB  # a few chunks; its pages are only there once touched
_ALIGN = 64


class SharedPath(Path):
    """One pair of arenas.

    Args:
        connection: a Unix socket to a process on this host.
        own, theirs: descriptors of the arenas to send from and to receive in; taken over.
    """

    drains: ClassVar[bool] = True

    def __init__(self, peer: int, connection: socket.socket, own: int, theirs: int) -> None:
        self.peer = peer
        self.traffic = Traffic()
        self._socket = connection
        self._out_arena = memoryview(mmap.mmap(own, ARENA_BYTES))
        self._in_arena = memoryview(mmap.mmap(theirs, ARENA_BYTES))
        os.close(own)
        os.close(theirs)
        connection.setblocking(False)
        self._waiting: deque[tuple[Header, memoryview, Callable[[], None] | None]] = deque()
        self._lent: deque[tuple[int, int]] = deque()  # (start, stop) of chunks not yet used
        self._records = bytearray()  # that the socket does not take yet
        self._partial = bytearray()
        self._arrived: deque[tuple[Header, int]] = deque()
        self._gone: PeerGone | None = None
        self._broken = False  # nothing can be sent any more

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._records) and not self._broken

    @property
    def delivered(self) -> bool:
        return self._broken or not (self._waiting or self._records)

    @property
    def silent(self) -> bool:
        return self._gone is not None

    def withdraw(self) -> None:
        self._waiting.clear()

    def queue(
        self, header: Header, payload: memoryview, done: Callable[[], None] | None = None
    ) -> None:
        assert len(payload) <= ARENA_BYTES, "a chunk larger than the arena"
        self._waiting.append((header, payload, done))

    def flush(self) -> None:
        finished = []
        while self._waiting and not self._broken:
            header, payload, done = self._waiting[0]
            place = self._take(len(payload))
            if place is None:
                break
            self._waiting.popleft()
            if len(payload):
                self._out_arena[place : place + len(payload)] = payload
            self._records += pack(header, checked=False) + _PLACE.pack(place)
            self.traffic.sent += HEADER_BYTES + len(payload)
            if done is not None:
                finished.append(done)
        self._write()
        for done in finished:
            done()

    def _take(self, size: int) -> int | None:
        """Room in the arena behind what was lent last; every frame takes some, so that each is
        given back by one answer."""
        size = max(_ALIGN, -(-size // _ALIGN) * _ALIGN)
        if not self._lent:
            self._lent.append((0, size))
            return 0
        oldest, newest = self._lent[0][0], self._lent[-1][1]
        if self._lent[-1][0] >= oldest:  # free: behind the newest, and before the oldest
            if newest + size <= ARENA_BYTES:
                start = newest
            elif size < oldest:
                start = 0
            else:
                return None
        elif newest + size < oldest:
            start = newest
        else:
            return None
        self._lent.append((start, start + size))
        return start

    def _write(self) -> None:
        while self._records and not self._broken:
            try:
                sent = self._socket.send(self._records)
            except BlockingIOError:
                return
            except OSError:
                self._broken = True  # a peer that has left needs no room either
                return
            del self._records[:sent]

    def peek(self) -> Header | None:
        self._read()
        if self._arrived:
            return self._arrived[0][0]
        if self._gone is not None:
            raise self._gone
        return None

    def _read(self) -> None:
        given_back = 0
        while self._gone is None:
            try:
                data = self._socket.recv(_RECORD * 256)
            except BlockingIOError:
                break
            except OSError as error:
                self._gone = PeerGone(self.peer, str(error))
                break
            if not data:
                self._gone = PeerGone(self.peer, "the connection was closed")
                break
            self._partial += data
            whole = len(self._partial) // _RECORD * _RECORD
            for start in range(0, whole, _RECORD):
                header = unpack(self._partial[start : start + HEADER_BYTES])
                if header.kind == PRIVATE:
                    given_back += 1
                    continue
                (place,) = _PLACE.unpack_from(self._partial, start + HEADER_BYTES)
                self._arrived.append((header, place))
            del self._partial[:whole]
            if len(data) < _RECORD * 256:
                break
        for _ in range(given_back):
            self._lent.popleft()
        if given_back and self._waiting:
            self.flush()

    def receive(self, into: memoryview | None = None) -> memoryview | None:
        header, place = self._arrived[0]
        payload = self._in_arena[place : place + header.num_bytes]
        if into is None:
            return payload
        into[:] = payload
        return into

    def release(self) -> None:
        header, _ = self._arrived.popleft()
        self.traffic.received += HEADER_BYTES + header.num_bytes
        self._records += _USED
        self._write()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class SharedMemory(Transport):
    """Arenas between all pairs of processes of one host, joined by Unix sockets."""

    name: ClassVar[str] = "shared"

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes

    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        connections = meet(meeting, self.lanes, local=True)
        flat = [(peer, lane) for peer, lanes in connections.items() for lane in lanes]
        arenas = [_give_arena(connection) for _, connection in flat]  # all, before taking any
        paths: dict[int, list[Path]] = {peer: [] for peer in connections}
        for (peer, connection), arena in zip(flat, arenas, strict=True):
            connection.settimeout(meeting.timeout)
            try:
                _, (theirs,), _, _ = socket.recv_fds(connection, 1, 1)
            except (OSError, ValueError) as error:
                raise PeerGone(peer, f"it passed no shared memory: {error}") from error
            paths[peer].append(SharedPath(peer, connection, arena, theirs))
        return paths


def _give_arena(connection: socket.socket) -> int:
    arena = os.memfd_create("pluribus")
    os.ftruncate(arena, ARENA_BYTES)
    socket.send_fds(connection, [b"a"], [arena])
    return arena


def available() -> bool:
    """Whether this system has what it takes."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
