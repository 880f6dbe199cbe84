"""A process's listener: its sign of life, and a way for members that cannot reach each other.

It is there as long as the process. Who only calls is held: the kernel ends the connection with the
process, whatever the process was doing. Who names another member's listener and shows the group's
token is connected with it, and what either says is passed on; both then have an ordinary TCP
connection, whose frames are checked end to end.
"""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import struct
import threading
import time

from pluribus.comm.forks import keep_from_children
from pluribus.core.units import MIB

_BACKLOG = 1024
_ASK = struct.Struct("<32s64s")  # token, and "address port" of who is asked for
_CONNECTED = b"\1"
_HELD_BYTES = MIB  # of each direction of a tunnel
_LEAVING_SECONDS = 5.0  # for members that still talk over this process


def ask(door: str, token: bytes, where: str, seconds: float) -> socket.socket:
    """A connection to ``where`` by way of the process behind a door.

    Raises:
        OSError: it cannot be reached, or does not reach it.
    """
    address, _, port = door.partition(" ")
    connection = socket.create_connection((address, int(port)), seconds)
    try:
        connection.sendall(_ASK.pack(token.ljust(32, b"\0"), where.encode()))
        if connection.recv(1) != _CONNECTED:
            raise ConnectionError(f"{door} does not reach {where}")
    except OSError:
        connection.close()
        raise
    return connection


class _End:
    """One connection at this process.

    Attributes:
        other: whose words it passes on; None of who only listens for our end, or asks still.
        out: what the other one said and this has not taken.
        connecting: until it is reached.
        over: whether it says nothing any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.other: _End | None = None
        self.asked = bytearray()
        self.out = bytearray()
        self.connecting = self.over = self.told = False

    @property
    def wants(self) -> int:
        other = self.other
        if self.connecting:
            return select.POLLOUT
        reads = other is None or (not self.over and len(other.out) < _HELD_BYTES)
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self.out else 0)


class Porter:
    """See the module; a thread of its own.

    Attributes:
        where: ``"address port"``.
    """

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self.where = f"{address} {self._listener.getsockname()[1]}"
        self._token = b""
        self._ends: dict[int, _End] = {}
        self._until = float("inf")
        self._poll = select.poll()
        keep_from_children(self)
        self._thread = threading.Thread(target=self._run, name="pluribus-porter", daemon=True)
        self._thread.start()

    def descriptors(self) -> list[int]:
        own = [self._listener.fileno(), self._wake_read.fileno(), self._wake_write.fileno()]
        return own + list(self._ends)

    def admit(self, token: bytes) -> None:
        """Takes requests of members of this epoch."""
        self._token = token.ljust(32, b"\0")
        self._wake()

    def close(self) -> None:
        """Ends it, but not before those that talk over it have ended or some seconds are over."""
        self._until = time.monotonic() + _LEAVING_SECONDS
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"w")

    def _run(self) -> None:
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)
        while time.monotonic() < self._until and not (self._leaving and not self._passing):
            for descriptor, end in self._ends.items():
                self._poll.register(descriptor, end.wants)
            patience = min(1000.0 * (self._until - time.monotonic()), 1e6)
            for descriptor, _ in self._poll.poll(max(0.0, patience)):
                if descriptor == self._listener.fileno():
                    self._let_in()
                elif descriptor == self._wake_read.fileno():
                    self._wake_read.recv(4096)
                elif descriptor in self._ends:
                    self._serve(self._ends[descriptor])
            for end in list(self._ends.values()):
                self._connect(end)
        for end in list(self._ends.values()):
            end.connection.close()
        for own in (self._listener, self._wake_read, self._wake_write):
            own.close()

    @property
    def _leaving(self) -> bool:
        return self._until < float("inf")

    @property
    def _passing(self) -> bool:
        return any(end.other is not None for end in self._ends.values())

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):  # nobody more
            while True:
                self._add(self._listener.accept()[0])

    def _add(self, connection: socket.socket) -> _End:
        end = self._ends[connection.fileno()] = _End(connection)
        return end

    def _drop(self, end: _End) -> None:
        for each in (end, end.other):
            if each is not None and each.connection.fileno() >= 0:
                with contextlib.suppress(KeyError):  # it came in this very turn
                    self._poll.unregister(each.connection.fileno())
                del self._ends[each.connection.fileno()]
                each.connection.close()

    def _serve(self, end: _End) -> None:
        if end.connecting:
            if end.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(end)
                return
            end.connecting = False
            assert end.other is not None
            end.other.out[:0] = _CONNECTED
        try:
            if end.other is None:
                said = end.connection.recv(_ASK.size - len(end.asked) or 1)
                if not said or len(end.asked) == _ASK.size:
                    self._drop(end)
                end.asked += said
                return
            if not end.over:
                with contextlib.suppress(BlockingIOError):
                    said = end.connection.recv(_HELD_BYTES)
                    end.over = not said
                    end.other.out += said
            for each in (end, end.other):
                self._send(each)
            if end.over and end.other.over and not (end.out or end.other.out):
                self._drop(end)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(end)

    def _send(self, end: _End) -> None:
        assert end.other is not None
        if end.connecting:
            return
        with contextlib.suppress(BlockingIOError):
            while end.out:
                del end.out[: end.connection.send(end.out)]
            if end.other.over and not end.told:
                end.told = True
                end.connection.shutdown(socket.SHUT_WR)

    def _connect(self, end: _End) -> None:
        """Connects who has asked, once this process knows the token."""
        if len(end.asked) < _ASK.size or end.other is not None or not self._token:
            return
        token, where = _ASK.unpack(end.asked)
        if not hmac.compare_digest(token, self._token):
            return  # perhaps of an epoch that this process is about to join
        address, _, port = where.rstrip(b"\0").decode("ascii", "replace").partition(" ")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            target = socket.socket(family)
            other = self._add(target)
            target.connect_ex((address, int(port)))
        except (OSError, ValueError):
            self._drop(end)
            return
        other.connecting = True
        end.other, other.other = other, end
