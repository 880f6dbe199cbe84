"""Who of the peers is there: heartbeats, goodbyes and deaths, read off the control paths.

A peer is in one of three states. It is *there* until it says goodbye, and has then *left*: it had
delivered all it had to say before, and is missed only by operations that need more of it. A peer
whose paths end without that word is *lost*, which ends the group, as does a peer's word that the
group is given up. A peer that computes for long still answers, because its engine does; one that
was stopped or whose host hangs does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

from pluribus.comm import errors
from pluribus.comm.costs import Links
from pluribus.comm.errors import CollectiveError, PeerDied, PeerLeft
from pluribus.comm.mesh import Mesh
from pluribus.comm.transports.base import (
    ABORT,
    CANCEL,
    GOODBYE,
    PING,
    PONG,
    RECEIPT,
    RESEND,
    Header,
    Path,
    TransportError,
)
from pluribus.core.units import MIB

# After a death: what is already here may still end an operation, and the word of a peer that closed
# its paths for a reason is here before.
GRACE_SECONDS = 0.01
_TICK_SECONDS = 0.25

# A peer whose engine thread runs answers at once; what may keep it from running, or its answer from
# coming, for so long: other processes and long calls that hold the interpreter's lock, and what is
# queued on the link before the answer.
_FLOOR_SECONDS = 10.0
_QUEUED_BYTES = 16 * MIB  # in the kernels of both ends
_FACTOR = 5.0
_UNKNOWN_SECONDS = 20.0  # where no link was measured
_TOLD = " (told by "
_NOTHING = memoryview(b"")


def stall_deadline(links: Links | None) -> float:
    """Seconds of silence after which a peer has stalled, by the slowest link as it was measured."""
    if links is None:
        return _UNKNOWN_SECONDS
    slowest = min(link.bytes_per_s for link in (links.near, links.far))
    latency = max(link.latency_s for link in (links.near, links.far))
    return _FLOOR_SECONDS + _FACTOR * (2 * latency + _QUEUED_BYTES / slowest)


class Health:
    """The peers of one epoch. Only the engine's thread calls it.

    Args:
        stall: seconds after which a peer that answers nothing has stalled; may be changed.
        name: rank → how messages call it.

    Attributes:
        left: the peers that have said goodbye, and the error of what needs them.
        cancelled: number of the first collective that some peer does not end, and why.
        until: when a death or a peer's word ends the group; None: nothing has happened.
    """

    def __init__(self, mesh: Mesh, stall: float, name: Callable[[int], str]) -> None:
        self._mesh = mesh
        self.stall = stall
        self._name = name
        self._looked = time.monotonic()
        self._clock = 0.0  # seconds this process has run
        self._pinged = -stall
        self._verdicts: dict[int, CollectiveError] = {}  # of peers lost or that gave up, in order
        self._lost: set[int] = set()  # of those, the peers that said no word
        self._heard = dict.fromkeys(mesh.control, 0.0)
        self._missing: dict[Path, float] = {}  # paths that wait for a frame once more, since when
        self.left: dict[int, PeerLeft] = {}
        self.cancelled: tuple[int, CollectiveError] | None = None
        self.until: float | None = None

    @property
    def tick(self) -> float:
        """Seconds the engine sleeps at most while something is pending."""
        return min(_TICK_SECONDS, self.stall / 4)

    def starts_waiting(self) -> None:
        """Silence counts from now: while nothing was pending nobody was asked."""
        self._heard = dict.fromkeys(self._heard, self._clock)

    def hears(self, peer: int) -> None:
        """Something came from a peer, or from what is none."""
        if peer in self._heard:
            self._heard[peer] = self._clock

    def read(self, path: Path) -> None:
        """Takes what a control path brings.

        Raises:
            TransportError: that was all.
        """
        while (header := path.peek()) is not None:
            payload = path.receive()
            if payload is None:
                return
            said = bytes(payload)
            path.release()
            if header.epoch == self._mesh.epoch:
                self._take(path, header, said)

    def _take(self, path: Path, header: Header, said: bytes) -> None:
        peer = path.peer
        if header.kind == PING:
            self._say(path, PONG)
        elif header.kind == ABORT:
            self._lost.discard(peer)
            self._end(peer, _told(said, self._name(peer)), 0.0)
        elif header.kind == CANCEL:
            self._cancel(header.operation, _told(said, self._name(peer)))
        elif header.kind in (RECEIPT, RESEND):
            concerned = self._mesh.numbered(peer)[header.operation]
            if header.kind == RECEIPT:
                concerned.acknowledge(header.part)
            else:
                concerned.resend(header.part)
        elif header.kind == GOODBYE:
            self.left[peer] = PeerLeft(f"{self._name(peer)} has left the group", [peer])
            if peer in self._lost:  # the ends of its other paths were seen first
                self._lost.discard(peer)
                del self._verdicts[peer]
            # No rank can be sure to end what needs all: some wait only for each other, and one of
            # those may have given up over a message to the peer that left.
            self._cancel(header.operation, self.left[peer])

    def _cancel(self, number: int, error: CollectiveError) -> None:
        if self.cancelled is None or number < self.cancelled[0]:
            self.cancelled = number, error

    def miss(self, path: Path, number: int, frame: int) -> None:
        """A frame came with other bits on the path with this number; the peer is asked for it."""
        self._missing[path] = self._clock
        if path is self._mesh.control[path.peer]:
            path.ask(frame)
        else:
            self.tell(path.peer, RESEND, number, frame)

    def lose(self, peer: int, error: TransportError) -> None:
        """A path to a peer has ended."""
        if peer in self.left or peer in self._verdicts:
            return
        self._lost.add(peer)
        self._end(peer, PeerDied(f"{self._name(peer)} died: {error}", [peer]), GRACE_SECONDS)

    def _end(self, peer: int, verdict: CollectiveError, grace: float) -> None:
        self._verdicts[peer] = verdict
        until = time.monotonic() + grace
        self.until = until if self.until is None else min(self.until, until)

    def verdict(self) -> CollectiveError | None:
        """What has ended the group; None if it goes on."""
        self.until = None
        cut_off = None
        for peer, verdict in self._verdicts.items():
            via = self._mesh.via.get(peer, -1)
            if not (peer in self._lost and (via in self._lost or via in self.left)):
                return verdict
            what = f"{self._name(via)} is gone, by way of which {self._name(peer)} was reached"
            cut_off = cut_off or PeerDied(what, [via])
        return cut_off

    def check(self, pending: bool) -> None:
        """Looks at the clock, and asks the peers for a sign of life while something is pending.

        Raises:
            PeerStalled: a peer does not answer.
            CollectiveError: a path could not be repaired.
        """
        now = time.monotonic()
        # Longer than it ever sleeps: then it was this process that stood still.
        self._clock += min(now - self._looked, 2 * self.tick)
        self._looked = now
        for path, since in list(self._missing.items()):
            if not path.seeking:
                del self._missing[path]
            elif self._clock - since > self.stall:
                what = f"what {self._name(path.peer)} sends comes with other bits"
                raise CollectiveError(what, [path.peer])
        if not pending:
            return
        for peer, heard in self._heard.items():
            silent = self._clock - heard
            if silent > self.stall and peer not in self.left:
                what = f"{self._name(peer)} has not answered for {silent:.1f} s"
                raise errors.PeerStalled(what, [peer])
        if self._clock - self._pinged > self.stall / 4:
            self._pinged = self._clock
            self.tell_all(PING)

    def tell_all(self, kind: int, said: bytes = b"", operation: int = 0) -> None:
        """Says something to all peers that are there."""
        for peer, path in self._mesh.control.items():
            if peer not in self.left:
                self._say(path, kind, memoryview(said), operation)

    def tell(self, peer: int, kind: int, operation: int, part: int) -> None:
        """Says something to one peer."""
        if peer not in self.left:
            self._say(self._mesh.control[peer], kind, _NOTHING, operation, part)

    def _say(
        self, path: Path, kind: int, said: memoryview = _NOTHING, operation: int = 0, part: int = 0
    ) -> None:
        path.queue(Header(kind, self._mesh.epoch, operation, part, len(said)), said)
        path.flush()


def reason(error: Exception) -> bytes:
    """An error as an ABORT or a CANCEL carries it."""
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
    return kind(what if _TOLD in what else f"{what}{_TOLD}{teller})", ranks)
