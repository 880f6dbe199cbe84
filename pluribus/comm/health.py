"""Who of the peers is alive: heartbeats, goodbyes and deaths, read off the control paths.

A peer that computes for long still answers, because its engine does; one that was stopped or
whose host hangs does not. Who says goodbye is missed only by operations that need it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

from pluribus.comm import errors
from pluribus.comm.errors import CollectiveError
from pluribus.comm.mesh import Mesh
from pluribus.comm.transports.base import (
    ABORT,
    GOODBYE,
    PING,
    PONG,
    CorruptFrame,
    Header,
    Path,
    TransportError,
)

# After a death, or a peer's word that the group is given up: what is already here may still end an
# operation.
GRACE_SECONDS = 0.01
_NOTHING = memoryview(b"")


class Health:
    """The peers of one epoch. Only the engine's thread calls it.

    Args:
        stall_seconds: a peer that answers nothing for so long has stalled.
        name: rank → how messages call it.

    Attributes:
        heard: when each peer last showed life, on the monotonic clock.
        until: when a death or a peer's word ends the group; None: nothing has happened.
    """

    def __init__(self, mesh: Mesh, stall_seconds: float, name: Callable[[int], str]) -> None:
        self._mesh = mesh
        self._stall = stall_seconds
        self._name = name
        self._pinged = 0.0
        self._left: set[int] = set()  # said goodbye
        self._verdict: CollectiveError | None = None  # what ends the group at `until`
        self._dead: int | None = None  # the peer whose death is the verdict
        self.heard = dict.fromkeys(mesh.control, time.monotonic())
        self.until: float | None = None

    def starts_waiting(self) -> None:
        """Silence counts from now: while nothing was pending nobody was asked."""
        self.heard = dict.fromkeys(self.heard, time.monotonic())

    def has_left(self, peer: int) -> bool:
        """Whether a peer has said goodbye."""
        return peer in self._left

    def read(self, path: Path) -> bool:
        """Takes what a control path brings.

        Returns:
            Whether the peer has left, so that the path's end means nothing.
        """
        while (header := path.peek()) is not None:
            payload = path.receive()
            if payload is None:
                return False
            said = bytes(payload)
            path.release()
            if header.epoch != self._mesh.epoch:
                continue
            if header.kind == PING:
                self._say(path, PONG)
            elif header.kind == ABORT:
                self._end(_told(said, self._name(path.peer)))
            elif header.kind == GOODBYE:
                self._left.add(path.peer)
                if self._dead == path.peer:  # the ends of its other paths were seen first
                    self._verdict = self._dead = self.until = None
                return True
        return False

    def lost(self, error: TransportError) -> None:
        """A path has failed.

        Raises:
            CollectiveError: it brought wrong bytes.
        """
        if isinstance(error, CorruptFrame):
            raise CollectiveError(f"from {self._name(error.peer)}: {error}", [error.peer])
        if error.peer not in self._left and self._verdict is None:
            self._end(errors.PeerDied(f"{self._name(error.peer)} died: {error}", [error.peer]))
            self._dead = error.peer

    def _end(self, verdict: CollectiveError) -> None:
        if self._verdict is None:
            self._verdict = verdict
            self.until = time.monotonic() + GRACE_SECONDS

    def check(self, pending: bool, needed: Callable[[set[int]], int | None]) -> None:
        """Looks at the clock.

        Args:
            pending: whether anything waits.
            needed: one of these peers, which have left, from which something pending waits for
                more than has come.

        Raises:
            CollectiveError: a peer died, gave the group up, stalled, or has left and is needed.
        """
        now = time.monotonic()
        if self._verdict is not None and self.until is not None and now >= self.until:
            raise self._verdict
        if not pending:
            return
        missed = needed(self._left) if self._left else None
        if missed is not None:
            raise errors.PeerDied(f"{self._name(missed)} has left the group", [missed])
        for peer, heard in self.heard.items():
            if now - heard > self._stall and peer not in self._left:
                what = f"{self._name(peer)} has not answered for {now - heard:.1f} s"
                raise errors.PeerStalled(what, [peer])
        if now - self._pinged > self._stall / 4:
            self._pinged = now
            self.tell_all(PING)

    def tell_all(self, kind: int, said: bytes = b"") -> None:
        """Says something to all peers that are there."""
        for peer, path in self._mesh.control.items():
            if peer in self._left:
                continue
            try:
                self._say(path, kind, memoryview(said))
            except (TransportError, OSError):
                continue  # its end is seen where it is read

    def _say(self, path: Path, kind: int, said: memoryview = _NOTHING) -> None:
        path.queue(Header(kind, self._mesh.epoch, 0, 0, len(said)), said)
        path.flush()


def reason(error: Exception) -> bytes:
    """An error as an ABORT carries it."""
    ranks: Iterable[int] = getattr(error, "ranks", ())
    said = {"kind": type(error).__name__, "what": str(error), "ranks": list(ranks)}
    return json.dumps(said).encode()


def _told(said: bytes, teller: str) -> CollectiveError:
    """What a peer gave as its reason."""
    try:
        why = json.loads(said)
        kind = getattr(errors, str(why["kind"]), errors.Aborted)
        ranks = [int(rank) for rank in why["ranks"]]
        what = str(why["what"])
    except (ValueError, KeyError, TypeError):
        return errors.Aborted(f"{teller} gave the group up")
    if not (isinstance(kind, type) and issubclass(kind, CollectiveError)):
        kind = errors.Aborted
    return kind(f"{what} (told by {teller})", ranks)
