"""Who of the members dies while they meet.

Between two epochs there is no path to anybody, and whoever is late may compute for long. So while
it meets the others a rank holds a connection to each one's `Porter`, which ends with its process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import time

import torch.distributed as dist

from pluribus.comm.errors import CollectiveTimeout
from pluribus.comm.transports.base import PeerGone

_FIRST_SECONDS, _LATER_SECONDS = 5e-4, 0.02  # between two looks
_REACH_SECONDS = 10.0  # a kernel answers at once; a lost SYN goes out again after 1, 3 and 7 s
_KEPT_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # of a host that is cut off
_GONE = "gone"


class Watched:
    """A store for ranks that meet: waiting for a key ends when somebody dies.

    Args:
        store: keys of this group and epoch only.
        reached: doors that were reached before; a host that never was may be one that this cannot
            reach. More are added.
    """

    def __init__(self, store: dist.Store, timeout: float, reached: set[str]) -> None:
        self.store = self._whole = store
        self._timeout = timeout
        self._reached = reached
        self._poll = select.poll()
        self._lines: dict[int, tuple[int, socket.socket, str, float]] = {}
        self._known: set[int] = set()

    def watch(self, peer: int, door: str) -> None:
        """Holds a connection to a peer's door from now on; once is enough.

        Raises:
            PeerGone: there is nobody any more.
        """
        if peer in self._known:
            return
        self._known.add(peer)
        address, _, port = door.partition(" ")
        line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        line.setblocking(False)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEPT_ALIVE.items():
            if hasattr(socket, option):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._lines[line.fileno()] = (peer, line, door, time.monotonic() + _REACH_SECONDS)
        self._poll.register(line, select.POLLOUT)
        with contextlib.suppress(OSError):
            line.connect_ex((address, int(port)))
        self.check()

    def check(self) -> None:
        """Looks at all of them, and whether another rank misses somebody.

        Raises:
            PeerGone: one has died.
        """
        dead = self._ended()
        if self._whole.check([_GONE]):  # said before its sender ended in turn
            said = json.loads(self._whole.get(_GONE))
            raise PeerGone(int(said["peer"]), str(said["what"]))
        if dead is not None:
            raise dead

    def _ended(self) -> PeerGone | None:
        for descriptor, events in self._poll.poll(0):
            peer, line, door, until = self._lines[descriptor]
            if events == select.POLLOUT:  # all that can come now is its end
                self._poll.modify(line, select.POLLIN)
                self._reached.add(door)
                self._lines[descriptor] = (peer, line, door, float("inf"))
                continue
            error = line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if until == float("inf") or error == errno.ECONNREFUSED or door in self._reached:
                return PeerGone(peer, "it died before all had met")
            self._let_go(descriptor)
        now = time.monotonic()
        for descriptor, (peer, _, door, until) in list(self._lines.items()):
            if now > until:
                if door in self._reached:
                    return PeerGone(peer, "its host does not answer")
                self._let_go(descriptor)
        return None

    def _let_go(self, descriptor: int) -> None:
        """Of who cannot be reached from here: others watch it."""
        self._poll.unregister(descriptor)
        self._lines.pop(descriptor)[1].close()

    def tell(self, error: PeerGone) -> None:
        """Tells all that meet who is missed."""
        with contextlib.suppress(RuntimeError):  # the store may be gone with it
            self._whole.set(_GONE, json.dumps({"peer": error.peer, "what": str(error)}))

    def set(self, key: str, value: str) -> None:
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        """Waits for a key.

        Raises:
            PeerGone: one of those that are watched has died.
            CollectiveTimeout: nobody has set it in time.
        """
        until, pause = time.monotonic() + self._timeout, _FIRST_SECONDS
        while self._known and not self.store.check([key]):  # before, it may as well block
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
        for _, line, _, _ in self._lines.values():
            line.close()
        self._lines.clear()
