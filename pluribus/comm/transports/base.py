"""What a transport is: paths to peers that carry framed chunks and never block.

A group has one `Path` or several to every peer. All paths of a group are driven by one engine
thread, which polls their descriptors; a transport that needs timers or threads of its own (UDP)
keeps them behind its path and makes the path's descriptor readable when there is news.

Order: frames of one path arrive in the order they were queued, whole, once, uncorrupted. The
engine counts on it: a frame it has no place for yet stays at the head of its path, so that a
fast sender is held back by the path's own buffers and nothing is copied aside.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from pluribus.comm.native.crc32c import crc32c

MAGIC = 0x504C  # "PL"

# Kinds of frames. A transport may use kinds from 200 on for itself; the engine never sees them.
DATA = 1  # a chunk of a collective: operation = its number in the group, part = the chunk's
MESSAGE = 2  # a piece of a point-to-point message: operation = tag, part = number of the piece
PING, PONG = 3, 4
ABORT = 5  # the sender gives the group up; the payload says why, in UTF-8
GOODBYE = 6  # the sender leaves, and starts no collective from number `operation` on
CANCEL = 7  # the sender ends no collective from number `operation` on; the payload says why
RECEIPT = 8  # of the path with number `operation`: frames before number `part` are here
RESEND = 9  # that path's frame number `part` came with other bits
PRIVATE = 200
MARKS = 254  # and 255: of TCP connections, whatever is built on them


class TransportError(Exception):
    """A path can carry nothing any more.

    Attributes:
        peer: rank at its other end, within the group.
    """

    def __init__(self, peer: int, what: str) -> None:
        super().__init__(what)
        self.peer = peer


class PeerGone(TransportError):  # noqa: N818
    """The process at the other end closed the path, died, or became unreachable."""


class CorruptFrame(TransportError):  # noqa: N818
    """A frame whose checksum or header is wrong.

    Attributes:
        again: what the peer's `Path.resend` needs to send it again; None: it cannot.
    """

    def __init__(self, peer: int, what: str, again: int | None = None) -> None:
        super().__init__(peer, what)
        self.again = again


class Header(NamedTuple):
    """What stands before every payload.

    Attributes:
        kind: one of the constants above.
        epoch: of the membership; a path drops frames of another epoch.
        operation: number of the collective in its group, or the tag of a message.
        part: which chunk of it.
        num_bytes: of the payload.
    """

    kind: int
    epoch: int
    operation: int
    part: int
    num_bytes: int


_FIELDS = struct.Struct("<HBBIIII")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECK.size
_CHECKED = 1  # flag: the last word is the crc32c of the other fields and the payload


def pack(header: Header, payload: memoryview | bytes = b"", checked: bool = True) -> bytes:
    """The header's bytes; ``payload`` is what its checksum covers."""
    kind, epoch, operation, part, num_bytes = header
    fields = _FIELDS.pack(MAGIC, kind, checked, epoch, operation, part, num_bytes)
    if not checked:
        return fields + b"\0\0\0\0"
    crc = crc32c(fields)
    return fields + _CHECK.pack(crc32c(payload, crc) if num_bytes else crc)


def unpack(packed: bytes | bytearray | memoryview) -> Header:
    """Reads a header; its checksum is looked at by `intact` once the payload is there.

    Raises:
        ValueError: these bytes are no header.
    """
    magic, kind, _, epoch, operation, part, num_bytes = _FIELDS.unpack_from(packed)
    if magic != MAGIC:
        raise ValueError(f"a frame starts with {magic:#06x}, not {MAGIC:#06x}")
    return Header(kind, epoch, operation, part, num_bytes)


def intact(packed: bytes | bytearray | memoryview, payload: memoryview | bytes = b"") -> bool:
    """Whether header and payload are as they were sent; true if they were sent unchecked."""
    if not packed[3] & _CHECKED:
        return True
    crc = crc32c(bytes(packed[: _FIELDS.size]))
    if len(payload):
        crc = crc32c(payload, crc)
    return crc == _CHECK.unpack_from(packed, _FIELDS.size)[0]


@dataclass(slots=True)
class Traffic:
    """Bytes of a path, headers and what was sent again included."""

    sent: int = 0
    received: int = 0
    resent: int = 0


class Path(ABC):
    """One way to one peer, in both directions. All methods are called by the engine's thread.

    Only reading finds out that the peer is gone, after all that it sent: sending goes quiet.

    Attributes:
        peer: rank at the other end, within the group.
        traffic: what it has carried.
        drains: whether `peek` empties the descriptor even while a frame waits at the head. If so
            it is always polled (acknowledgements must get through); else only while the engine
            can use what comes.
    """

    peer: int
    traffic: Traffic
    drains: ClassVar[bool] = False

    @abstractmethod
    def fileno(self) -> int:
        """Descriptor to poll: readable when `peek`, `receive` or `flush` may get further."""

    @property
    @abstractmethod
    def wants_write(self) -> bool:
        """Whether queued bytes wait for the descriptor to become writable."""

    @property
    @abstractmethod
    def delivered(self) -> bool:
        """Whether the peer's host has all that was queued, or will never have it: then closing
        loses nothing."""

    @property
    def silent(self) -> bool:
        """Whether the descriptor has no news any more and need not be polled."""
        return False

    @property
    def packets(self) -> tuple[int, int]:
        """(sent again, sent), in packets or bytes, whatever the path counts; for its loss."""
        return self.traffic.resent, self.traffic.sent

    @property
    def needs_all(self) -> bool:
        """Whether what goes over it cannot end once any member has left."""
        return False

    @abstractmethod
    def queue(
        self, header: Header, payload: memoryview, done: Callable[[], None] | None = None
    ) -> None:
        """Takes a frame to send; returns at once.

        Args:
            payload: flat bytes; unchanged until ``done``.
            done: called by a later `flush` (or by this call) when the path no longer needs
                ``payload``; the peer need not have it yet.
        """

    @abstractmethod
    def flush(self) -> None:
        """Sends what the path takes now; nothing if nobody is at the other end."""

    @abstractmethod
    def withdraw(self) -> None:
        """Forgets all frames that are not ``done``, so that their payloads may change. Nothing
        more may be queued."""

    @abstractmethod
    def peek(self) -> Header | None:
        """The next frame's header, or None if it is not here; the same until it is received.

        Raises:
            PeerGone, CorruptFrame
        """

    @abstractmethod
    def receive(self, into: memoryview | None = None) -> memoryview | None:
        """Goes on receiving the frame that `peek` showed.

        Args:
            into: where the payload belongs, ``num_bytes`` long; None lets the path choose (a
                buffer of its own, shared memory). The same in every call for one frame.

        Returns:
            The whole payload, valid until `release`; None while more must come.

        Raises:
            PeerGone, CorruptFrame
        """

    @abstractmethod
    def release(self) -> None:
        """The received payload is used up; `peek` goes on to the next frame."""

    @property
    def seeking(self) -> bool:
        """Whether it waits for the peer to go back to a frame."""
        return False

    def receipt(self) -> int | None:
        """Number for the peer's `acknowledge`, now and then."""
        return None

    def adapt(self, latency_s: float, bytes_per_s: float, loss: float) -> None:  # noqa: B027
        """The link below was measured, and may suit another way of sending.

        Args:
            latency_s: of a small message, one way.
            bytes_per_s: of a large one.
            loss: share of packets sent again.
        """

    def acknowledge(self, number: int) -> None:  # noqa: B027
        """The peer has all frames before this one."""

    def ask(self, number: int) -> None:
        """Asks the peer on this very path to go back to a frame; it must be one that the peer
        always reads.

        Raises:
            CorruptFrame: that is not possible.
        """
        raise CorruptFrame(self.peer, "this kind of path sends nothing again")

    def resend(self, number: int) -> None:
        """Goes back to this frame; the peer throws away what came since.

        Raises:
            CorruptFrame: that is not possible.
        """
        raise CorruptFrame(self.peer, "this kind of path sends nothing again")

    @abstractmethod
    def close(self) -> None:
        """Ends the path at once, whatever is queued; the peer sees `PeerGone`. May be repeated."""


class Store(Protocol):
    """The part of a `torch.distributed.Store` a transport uses to meet its peers."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and as whom a rank meets its peers.

    Attributes:
        store: keys of this group and epoch only.
        rank: within the group.
        peers: ranks to connect to, without this one.
        epoch: goes into every header.
        address: IP address to listen on and to give to peers.
        token: every connection must open with it; made by the group's first rank.
        timeout: seconds after which a peer that does not come is a `PeerGone`.
        check: raises `PeerGone` if a peer has died meanwhile; called now and then.
        doors: rank → `Porter.where`, to ask for a way to those that cannot be reached.
        via: peer → the member on the way to it, as soon as it is known; none on a direct one.
    """

    store: Store
    rank: int
    peers: tuple[int, ...]
    epoch: int
    address: str
    token: bytes
    timeout: float
    check: Callable[[], None] = lambda: None
    doors: Mapping[int, str] = field(default_factory=dict)
    via: dict[int, int] = field(default_factory=dict)


class Transport(ABC):
    """Connects paths of one kind.

    Attributes:
        name: as in options and reports, e.g. ``"tcp"``.
    """

    name: ClassVar[str]

    @abstractmethod
    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        """Meets all peers; every member calls it, and it returns once all are connected.

        Returns:
            Peer → its paths, in the same order at both ends; which of them a frame takes is up to
            the engine, and the receiver knows it from the frame's part.

        Raises:
            PeerGone: a peer did not come in time.
        """
