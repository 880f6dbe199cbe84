"""Who of the members dies while they meet.

Between two epochs there is no path to anybody, and whoever is late may compute for long. So every
process keeps a listener open as long as it lives, which accepts nothing and is told nothing: while
it meets the others a rank holds a connection to each one's listener, and the kernel ends that with
the process.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time

import torch.distributed as dist

from pluribus.comm.errors import CollectiveTimeout
from pluribus.comm.forks import keep_from_children
from pluribus.comm.transports.base import PeerGone

_BACKLOG = 1024
_FIRST_SECONDS, _LATER_SECONDS = 5e-4, 0.02  # between two looks
_REACH_SECONDS = 10.0  # a kernel answers at once; a lost SYN goes out again after 1, 3 and 7 s
_KEPT_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # of a host that is cut off


class Pulse:
    """A sign of life: a listener whose backlog holds the others' connections.

    Attributes:
        where: ``"address port"``.
    """

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._held: list[socket.socket] = []
        self.where = f"{address} {self._listener.getsockname()[1]}"
        keep_from_children(self)

    def descriptors(self) -> list[int]:
        return [connection.fileno() for connection in (self._listener, *self._held)]

    def forget(self) -> None:
        """Makes room: closes what the others have closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._held.append(connection)
        still = []
        for connection in self._held:
            try:
                connection.recv(1)
            except BlockingIOError:
                still.append(connection)
                continue
            except OSError:
                pass
            connection.close()  # its end, or somebody who says something here
        self._held = still

    def close(self) -> None:
        for connection in (self._listener, *self._held):
            connection.close()


class Watched:
    """A store for ranks that meet: waiting for a key ends when somebody dies.

    Args:
        store: keys of this group and epoch only.
    """

    def __init__(self, store: dist.Store, timeout: float) -> None:
        self.store = store
        self._timeout = timeout
        self._poll = select.poll()
        self._lines: dict[int, tuple[int, socket.socket, float]] = {}

    def watch(self, peer: int, where: str) -> None:
        """Holds a connection to a peer's pulse from now on; once is enough.

        Raises:
            PeerGone: there is nobody any more.
        """
        if any(known == peer for known, _, _ in self._lines.values()):
            return
        address, _, port = where.partition(" ")
        line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        line.setblocking(False)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEPT_ALIVE.items():
            if hasattr(socket, option):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._lines[line.fileno()] = (peer, line, time.monotonic() + _REACH_SECONDS)
        self._poll.register(line, select.POLLOUT)
        line.connect_ex((address, int(port)))
        self.check()

    def check(self) -> None:
        """Looks at all of them.

        Raises:
            PeerGone: one has died.
        """
        for descriptor, events in self._poll.poll(0):
            peer, line, _ = self._lines[descriptor]
            if events & ~select.POLLOUT:
                raise PeerGone(peer, "it died before all had met")
            self._poll.modify(line, select.POLLIN)  # reached; all that can come is its end
            self._lines[descriptor] = (peer, line, float("inf"))
        now = time.monotonic()
        for peer, _, until in self._lines.values():
            if now > until:
                raise PeerGone(peer, "its host does not answer")

    def set(self, key: str, value: str) -> None:
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        """Waits for a key.

        Raises:
            PeerGone: one of those that are watched has died.
            CollectiveTimeout: nobody has set it in time.
        """
        until, pause = time.monotonic() + self._timeout, _FIRST_SECONDS
        while self._lines and not self.store.check([key]):  # without lines it may as well block
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, _LATER_SECONDS)
            if time.monotonic() > until:
                what = f"not all members met in {self._timeout:.0f} s: nobody said '{key}'"
                raise CollectiveTimeout(what)
        return self.store.get(key)

    def under(self, name: str) -> Watched:
        """The keys of a part of the meeting."""
        part = Watched.__new__(Watched)
        part.__dict__ |= self.__dict__
        part.store = dist.PrefixStore(name, self.store)
        return part

    def close(self) -> None:
        for _, line, _ in self._lines.values():
            line.close()
        self._lines.clear()
