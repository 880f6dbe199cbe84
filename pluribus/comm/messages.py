"""Point to point: messages of any size, matched by peer and tag, in pieces on a path of their own.

A message leaves as soon as it is sent; one that nobody has asked for yet is kept aside, so that
messages of other tags get past it, up to a limit per peer beyond which the peer is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pluribus.comm.errors import CollectiveError, CollectiveTimeout, Mismatch
from pluribus.comm.mesh import end_all
from pluribus.comm.transports.base import MESSAGE, Header, Path
from pluribus.core.units import GIB, MIB

PIECE_BYTES = MIB
KEPT_BYTES = GIB  # per peer

Done = Callable[..., None]


@dataclass(slots=True)
class Wanted:
    """A receive that waits; ``peer`` None takes any."""

    peer: int | None
    tag: int
    data: memoryview
    until: float
    done: Done
    at: int = 0


@dataclass(slots=True)
class Kept:
    """A message that came before it was wanted, perhaps not all of it yet."""

    peer: int
    tag: int
    pieces: list[bytes] = field(default_factory=list)
    whole: bool = False
    wanted: Wanted | None = None


class Messages:
    """All messages of one epoch; only the engine's thread calls it.

    Attributes:
        held_back: peers that have sent too much that nobody wants.
    """

    def __init__(self, epoch: int, paths: Mapping[int, Path]) -> None:
        self._epoch = epoch
        self._paths = paths
        self._wanted: list[Wanted] = []
        self._kept: list[Kept] = []
        self._open: dict[int, Wanted | Kept] = {}  # the message each peer is in the middle of
        self._kept_bytes: dict[int, int] = {}
        self._sending: dict[Done, int] = {}  # to which peer
        self._aside: set[int] = set()  # peers whose current frame goes to the path's own buffer
        self.held_back: set[int] = set()

    @property
    def pending(self) -> bool:
        return bool(self._wanted or self._sending or self._open)

    def send(self, peer: int, tag: int, data: memoryview, done: Done) -> None:
        if peer not in self._paths:  # to itself
            self._deliver_whole(Kept(peer, tag, [bytes(data)], True))
            done(None, peer)
            return
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)] or [data]
        self._sending[done] = peer

        def left() -> None:
            if self._sending.pop(done, None) is not None:
                done(None, peer)

        for position, piece in enumerate(pieces):
            last = position == len(pieces) - 1
            header = Header(MESSAGE, self._epoch, tag, len(pieces) - 1 - position, len(piece))
            self._paths[peer].queue(header, piece, left if last else None)

    def receive(
        self, peer: int | None, tag: int, data: memoryview, until: float, done: Done
    ) -> None:
        wanted = Wanted(peer, tag, data, until, done)
        for kept in self._kept:
            if kept.tag == tag and peer in (None, kept.peer):
                self._kept.remove(kept)
                held = sum(map(len, kept.pieces))
                self._kept_bytes[kept.peer] = self._kept_bytes.get(kept.peer, 0) - held
                self.held_back.discard(kept.peer)
                for piece in kept.pieces:
                    self._fill(wanted, kept.peer, piece)
                if kept.whole:
                    self._complete(wanted, kept.peer)
                else:
                    self._open[kept.peer] = wanted
                return
        self._wanted.append(wanted)

    def take(self, path: Path, header: Header) -> bool:
        """Goes on with the frame at a path's head; whether it is used up."""
        peer, tag = path.peer, header.operation
        message = self._open.get(peer)
        if message is None:
            message = self._match(peer, tag)
            if message is None:
                if self._kept_bytes.get(peer, 0) > KEPT_BYTES:
                    self.held_back.add(peer)
                    return False
                message = Kept(peer, tag)
                self._kept.append(message)
            self._open[peer] = message
        if isinstance(message, Wanted):
            into = message.data[message.at : message.at + header.num_bytes]
            if len(into) != header.num_bytes:
                raise _wrong_size(message, peer, message.at + header.num_bytes)
            payload = path.receive(None if peer in self._aside else into)
            if payload is None:
                return False
            if peer in self._aside:
                into[:] = payload
            message.at += header.num_bytes
        else:
            self._aside.add(peer)
            payload = path.receive()
            if payload is None:
                return False
            message.pieces.append(bytes(payload))
            self._kept_bytes[peer] = self._kept_bytes.get(peer, 0) + header.num_bytes
        path.release()
        self._aside.discard(peer)
        if header.part == 0:
            del self._open[peer]
            if isinstance(message, Wanted):
                self._complete(message, peer)
            else:
                message.whole = True
        return True

    def late(self, now: float) -> CollectiveTimeout | None:
        """The error of a receive that has waited too long."""
        for wanted in self._wanted:
            if now > wanted.until:
                whom = "anybody" if wanted.peer is None else f"rank {wanted.peer}"
                what = f"no message with tag {wanted.tag} from {whom} came in time"
                return CollectiveTimeout(what, () if wanted.peer is None else [wanted.peer])
        return None

    def miss(self, left: Mapping[int, Exception], ended: Callable[[Path], bool]) -> None:
        """Ends what waits for peers that have left: messages to them, and from them unless their
        path still brings something."""
        over = {peer for peer in left if ended(self._paths[peer])}
        errors = {peer: left[peer] for peer in over}
        if over and len(over) == len(self._paths):
            errors[None] = left[next(iter(over))]
        lost = [(wanted, errors[wanted.peer]) for wanted in self._wanted if wanted.peer in errors]
        self._wanted = [wanted for wanted in self._wanted if wanted.peer not in errors]
        for peer in over:
            message = self._open.pop(peer, None)
            if isinstance(message, Wanted):
                lost.append((message, left[peer]))
        for wanted, error in lost:
            end_all([wanted.done], error, -1)
        for done, peer in list(self._sending.items()):
            if peer in left:
                self._paths[peer].withdraw()
                del self._sending[done]
                end_all([done], left[peer], -1)

    def fail(self, error: Exception) -> None:
        """Ends all."""
        ended = {id(w): w for w in [*self._wanted, *self._open.values()] if isinstance(w, Wanted)}
        sending, self._sending = list(self._sending), {}
        self._wanted.clear()
        self._open.clear()
        self._kept.clear()
        end_all([*(wanted.done for wanted in ended.values()), *sending], error, -1)

    def _match(self, peer: int, tag: int) -> Wanted | None:
        for wanted in self._wanted:
            if wanted.tag == tag and wanted.peer in (None, peer):
                self._wanted.remove(wanted)
                return wanted
        return None

    def _deliver_whole(self, kept: Kept) -> None:
        wanted = self._match(kept.peer, kept.tag)
        if wanted is None:
            self._kept.append(kept)
            return
        self._fill(wanted, kept.peer, kept.pieces[0])
        self._complete(wanted, kept.peer)

    def _fill(self, wanted: Wanted, peer: int, piece: bytes) -> None:
        if wanted.at + len(piece) > len(wanted.data):
            raise _wrong_size(wanted, peer, wanted.at + len(piece))
        wanted.data[wanted.at : wanted.at + len(piece)] = piece
        wanted.at += len(piece)

    def _complete(self, wanted: Wanted, peer: int) -> None:
        if wanted.at != len(wanted.data):
            wanted.done(_wrong_size(wanted, peer, wanted.at), peer)
        else:
            wanted.done(None, peer)


def _wrong_size(wanted: Wanted, peer: int, size: int) -> CollectiveError:
    return Mismatch(
        f"rank {peer} sent {size} bytes or more with tag {wanted.tag}; {len(wanted.data)} bytes "
        "were expected",
        [peer],
    )
