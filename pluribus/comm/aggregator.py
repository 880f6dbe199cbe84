"""In-network reduction in software: a process that sums what the members of a stream send.

After SwitchML (Sapio et al., NSDI 2021, §3): a member has at most `SLOTS` chunks on the way, uses a
slot again only when it has the slot's last sum, and keeps that sum for a member that missed it; so
whoever takes the aggregator's place can go on where it was lost (see `AggregatorPath`). What is
lost between two hosts TCP sends again.

Sums are of float32, as processors add them, in the order of the members: equal bits in every run.
A switch would need integers and a scale agreed upon before each sum; here that would only cost
range. It pays where the aggregator's link carries all members' traffic at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from pluribus.comm.transports.base import DATA, GOODBYE, Header, TransportError
from pluribus.comm.transports.stream import TcpPath
from pluribus.comm.transports.tcp import prepare
from pluribus.core.errors import ConfigError
from pluribus.core.units import MIB

SLOTS = 16  # chunks of a member on the way: twice 100 µs at 10 Gbit/s, and some for jitter
MOST_STREAMS = 1024
GREETING_SECONDS = 5.0
DEAD_MILLISECONDS = 5000  # of no acknowledgement, after which a connection is gone
POLL_SECONDS = 0.2
_HELLO = struct.Struct("<32s16sHHHIQI")


class Hello(NamedTuple):
    """What a member opens with.

    Attributes:
        group: the same for all members of a group in one epoch, and nobody else's.
        stream: one of the group's.
        member, count: which of how many.
        rank: in the group.
        first: number of the first chunk whose sum it does not have.
        kept: of the sums before, how many it is going to show.
    """

    group: bytes
    stream: int
    member: int
    count: int
    rank: int
    first: int
    kept: int


def pack_hello(token: str, hello: Hello) -> bytes:
    return _HELLO.pack(_key(token), *hello)


def _key(token: str) -> bytes:
    return hashlib.blake2b(token.encode()[:64], digest_size=32, person=b"aggregator").digest()


class _Member:
    """A connection of one member of a stream."""

    def __init__(self, hello: Hello, path: TcpPath) -> None:
        self.hello, self.path = hello, path
        self.kept = hello.kept  # of its sums, those that have not come yet
        self.parts: deque[tuple[Header, np.ndarray]] = deque()
        self.buffer: np.ndarray | None = None
        self.has_left = False


class _Stream:
    """The members that sum together, and how far they are."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.members: dict[int, _Member] = {}
        self.at = -1  # number of the chunk to sum next; -1: somebody is missing still
        self.sums: dict[int, np.ndarray] = {}  # that members brought


class Aggregator:
    """Sums for any number of groups.

    Args:
        host: IP address to listen on; beyond loopback a token is needed.
        port: 0 chooses one; see `address`.

    Raises:
        ConfigError: listening beyond loopback without a token, or it cannot listen there.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, token: str = "") -> None:
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            raise ConfigError(f"'{host}' is no IP address", do="Give one of this host's.") from None
        if not token and not loopback:
            raise ConfigError(
                f"listening on {host} would let anybody add to the sums",
                do="Give a token, the same to every rank.",
            )
        self._token = token
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=256)
        except OSError as error:
            raise ConfigError(f"cannot listen: {error.strerror}", where=f"{host}:{port}") from None
        self._listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._streams: dict[tuple[bytes, int], _Stream] = {}
        self._members: dict[int, _Member] = {}  # by descriptor
        self._waiting: dict[int, tuple[socket.socket, bytearray, float]] = {}  # for their hello
        self._pool: dict[int, list[np.ndarray]] = {}

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.getsockname()[:2]

    def serve(self, stop: threading.Event) -> None:
        """Answers until ``stop`` is set."""
        try:
            while not stop.is_set():
                self._turn()
        finally:
            self._listener.close()
            for connection, _, _ in self._waiting.values():
                connection.close()
            for member in self._members.values():
                member.path.close()

    def _turn(self) -> None:
        for descriptor, member in self._members.items():
            wants = select.POLLOUT if member.path.wants_write else 0
            self._poll.register(descriptor, select.POLLIN | wants)
        for descriptor, _ in self._poll.poll(1000 * POLL_SECONDS):
            if descriptor == self._listener.fileno():
                with contextlib.suppress(OSError):
                    connection, _ = self._listener.accept()
                    connection.setblocking(False)
                    self._poll.register(connection, select.POLLIN)
                    until = time.monotonic() + GREETING_SECONDS
                    self._waiting[connection.fileno()] = connection, bytearray(), until
            elif descriptor in self._waiting:
                self._greet(descriptor)
            elif descriptor in self._members:
                self._serve(self._members[descriptor])
        now = time.monotonic()
        for descriptor, (_, _, until) in list(self._waiting.items()):
            if now > until:
                self._refuse(descriptor)

    def _greet(self, descriptor: int) -> None:
        connection, said, _ = self._waiting[descriptor]
        try:
            more = connection.recv(_HELLO.size - len(said))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        said += more
        if len(said) < _HELLO.size:
            if not more:
                self._refuse(descriptor)
            return
        key, *fields = _HELLO.unpack(said)
        hello = Hello(*fields)
        if not hmac.compare_digest(key, _key(self._token)) or not 0 <= hello.member < hello.count:
            self._refuse(descriptor)
            return
        name = hello.group, hello.stream
        stream = self._streams.get(name) or _Stream(hello.count)
        if hello.member in stream.members or stream.count != hello.count:
            self._refuse(descriptor)
            return
        while len(self._streams) >= MOST_STREAMS and name not in self._streams:
            self._drop(next(iter(self._streams)))
        self._streams[name] = stream
        del self._waiting[descriptor]
        prepare(connection, "", DEAD_MILLISECONDS)
        member = _Member(hello, TcpPath(hello.rank, connection))
        stream.members[hello.member] = self._members[descriptor] = member
        if len(stream.members) == stream.count and stream.at < 0:
            stream.at = min(one.hello.first for one in stream.members.values())

    def _refuse(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._waiting.pop(descriptor)[0].close()

    def _serve(self, member: _Member) -> None:
        name = member.hello.group, member.hello.stream
        stream = self._streams[name]
        try:
            member.path.flush()
            self._read(member, stream)
            while self._sum(stream):
                pass
        except (TransportError, ValueError):
            # Its members go on elsewhere, all of them: one that stayed would wait for ever.
            self._drop(name)

    def _drop(self, name: tuple[bytes, int]) -> None:
        for member in self._streams.pop(name).members.values():
            descriptor = member.path.fileno()
            if self._members.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)
                member.path.close()

    def _read(self, member: _Member, stream: _Stream) -> None:
        path = member.path
        while not member.has_left and (header := path.peek()) is not None:
            if header.kind == GOODBYE:
                self._leave(member, stream)
                return
            size = header.num_bytes
            if header.kind != DATA or size % 4 or size > MIB or len(member.parts) > SLOTS:
                raise ValueError("no member says so")
            if member.buffer is None:
                member.buffer = self._take(size)
            if path.receive(memoryview(member.buffer)) is None:
                return
            path.release()
            buffer, member.buffer = member.buffer, None
            if member.kept:
                stream.sums[member.hello.first - member.kept] = buffer
                member.kept -= 1
            else:
                member.parts.append((header, buffer))

    def _leave(self, member: _Member, stream: _Stream) -> None:
        member.has_left = True
        descriptor = member.path.fileno()
        self._members.pop(descriptor)
        self._poll.unregister(descriptor)
        member.path.close()
        self._miss(stream)
        if all(one.has_left for one in stream.members.values()):
            del self._streams[member.hello.group, member.hello.stream]

    def _miss(self, stream: _Stream) -> None:
        """Tells whoever waits for a sum which member has left and has no part in it."""
        gone = [one for one in stream.members.values() if one.has_left and not one.parts]
        for member in stream.members.values():
            if gone and member.parts and not member.has_left:
                header = Header(GOODBYE, 0, gone[0].hello.rank, 0, 0)
                member.path.queue(header, memoryview(b""))
                member.path.flush()

    def _sum(self, stream: _Stream) -> bool:
        """The next chunk's sum, to all who want it; false if it cannot be had yet."""
        if stream.at < 0:
            return False
        members = [stream.members[number] for number in range(stream.count)]
        wanting = [one for one in members if one.hello.first <= stream.at]
        if not all(one.parts for one in wanting):
            self._miss(stream)
            return False
        known = stream.sums.get(stream.at)
        if known is None and len(wanting) < len(members):
            return False  # somebody has it, and is about to show it
        parts = [one.parts.popleft() for one in wanting]
        odd = next((header for header, _ in parts if header != parts[0][0]), None)
        if odd is not None:
            # They call different collectives; each is shown another's, and says so to its user.
            for one, (header, part) in zip(wanting, parts, strict=True):
                other = odd if header == parts[0][0] else parts[0][0]
                one.path.queue(other, memoryview(np.resize(part, other.num_bytes)))
                one.path.flush()
            stream.at = -1
            return False
        total = known
        if total is None:
            total = parts[0][1]
            for _, part in parts[1:]:
                np.add(total.view(np.float32), part.view(np.float32), out=total.view(np.float32))
        left = [len(wanting)]

        def sent() -> None:
            left[0] -= 1
            if not left[0]:
                self._give_back(total)

        for one in wanting:
            one.path.queue(parts[0][0], memoryview(total), sent)
            one.path.flush()
        for _, part in parts:
            if part is not total:
                self._give_back(part)
        stream.sums.pop(stream.at, None)
        stream.at += 1
        return True

    def _take(self, size: int) -> np.ndarray:
        """A buffer; fresh memory would cost more than the sum."""
        free = self._pool.get(size)
        return free.pop() if free else np.empty(size, np.uint8)

    def _give_back(self, buffer: np.ndarray) -> None:
        free = self._pool.setdefault(len(buffer), [])
        if len(free) < 4 * SLOTS:
            free.append(buffer)
