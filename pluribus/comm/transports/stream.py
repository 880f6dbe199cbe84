"""Frames over one TCP connection; what comes with other bits is sent again."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable

from pluribus.comm.native.crc32c import crc32c
from pluribus.comm.transports.base import (
    MAGIC,
    MARKS,
    CorruptFrame,
    Header,
    Path,
    PeerGone,
    Traffic,
)
from pluribus.core.units import MIB

_READ_AHEAD = 64 * 1024  # small frames come many to a system call
_RTT_OFFSET = 68  # of tcpi_rtt in struct tcp_info, microseconds; linux/tcp.h
_RESENT_OFFSET, _SENT_OFFSET = 100, 136  # tcpi_total_retrans, tcpi_segs_out in linux/tcp.h
_TCP_CLOSE = 7  # linux/tcp_states.h: the peer has refused what was still on its way

# magic, kind, checked, epoch, operation, part, bytes of the payload, number of the frame, crc32c
# of the payload; then the crc32c of these fields
_FIELDS = struct.Struct("<HBBIIIIII")
_CHECK = struct.Struct("<I")
_HEAD_BYTES = _FIELDS.size + _CHECK.size

# Marks: frames without a number of their own, which are found among what is thrown away.
_RESUME = MARKS  # what follows goes on with the frame of this number
_ASK = MARKS + 1  # go back to the frame of this number
_SIGN = (0x9E3779B9, 0x7F4A7C15, 0xF39CC060, 0)  # epoch, operation, part and bytes of a mark
_SIGN_AT, _SIGN_BYTES = 4, struct.pack("<IIII", *_SIGN)
_COPIES = 4  # of a mark: some of them may come with other bits
_NUMBERS = 1 << 32
_RECEIPT_BYTES = 2 * MIB  # a sender keeps so much, and what its and the peer's kernel hold
_RECEIPT_FRAMES = 256
_MOST_REPEATS = 8  # of one frame; then something is broken for good


class _Frame:
    """A frame to send, or one that may be asked for again.

    Attributes:
        number: on this path, -1 until its first byte leaves; of the frame a mark is about.
        asking: which asking of its sender a mark belongs to.
        parts: what of it is not sent yet; None until its first byte leaves.
        own: whether the payload is a copy, which nobody changes.
    """

    __slots__ = ("asking", "done", "header", "number", "own", "parts", "payload")

    def __init__(
        self, header: Header, payload: memoryview | bytes, done: Callable[[], None] | None
    ) -> None:
        self.header, self.payload, self.done = header, payload, done
        self.number, self.asking = -1, 0
        self.parts: list[memoryview] | None = None
        self.own = False


class TcpPath(Path):
    """One connection.

    A frame that arrives with other bits is asked for again: the receiver raises `CorruptFrame`
    with the number of the frame it misses, throws away what comes until the sender, told by
    another way, goes back to it. For that the sender keeps copies until it has the receipt.

    Args:
        checked: whether its frames carry checksums.
        repeats: whether they can be asked for again; both ends must pass on each other's
            `receipt` and what a `CorruptFrame` asks for.
    """

    seeking = False

    def __init__(
        self, peer: int, connection: socket.socket, checked: bool = True, repeats: bool = False
    ) -> None:
        connection.setblocking(False)
        self.peer = peer
        self.traffic = Traffic()
        self._socket = connection
        self._checked = checked
        self._again = checked and repeats
        self._broken = False  # nothing can be sent any more
        self._out: deque[_Frame] = deque()
        self._next = 0  # number of the next frame to send
        self._kept: deque[_Frame] = deque()  # sent, without receipt
        self._kept_from = 0  # number of the first of them
        self._ahead = memoryview(bytearray(_READ_AHEAD))
        self._start = self._stop = 0
        self._expected = 0  # number of the frame to come
        self._times = 0  # of that one
        self.seeking = False  # where the sender goes back to it
        self._askings = self._answered = 0  # of this end, and of the peer
        self._receipt_at = self._since = 0  # frames and bytes since the last receipt
        self._header: Header | None = None
        self._crc = 0
        self._own = bytearray()
        self._at = 0  # bytes of the payload that are in place

    def fileno(self) -> int:
        return self._socket.fileno()

    # Sending.

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
        self._out.append(_Frame(header, payload, done))

    def withdraw(self) -> None:
        self._out = deque(frame for frame in self._out if frame.own)

    def flush(self) -> None:
        while self._out and not self._broken:
            frame = self._out[0]
            if frame.parts is None:
                self._begin(frame)
            assert frame.parts is not None
            try:
                sent = self._socket.sendmsg(frame.parts)
            except BlockingIOError:
                return
            except OSError:
                self._broken = True
                return
            self.traffic.sent += sent
            parts = frame.parts
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][sent:]
                continue
            self._out.popleft()
            done = frame.done
            self._keep(frame)
            if done is not None:
                done()

    def _begin(self, frame: _Frame) -> None:
        if frame.number < 0:
            frame.number = self._next
            self._next = (self._next + 1) % _NUMBERS
        kind, epoch, operation, part, num_bytes = frame.header
        payload = memoryview(frame.payload)
        crc = crc32c(payload) if self._checked and num_bytes else frame.asking
        fields = _FIELDS.pack(
            MAGIC, kind, self._checked, epoch, operation, part, num_bytes, frame.number, crc
        )
        head = memoryview(fields + _CHECK.pack(crc32c(fields) if self._checked else 0))
        frame.parts = [head, payload] if num_bytes else [head]

    def _keep(self, frame: _Frame) -> None:
        if not self._again or frame.header.kind >= _RESUME:
            return
        if not frame.own:
            frame.payload, frame.own = bytes(frame.payload), True
        frame.done = frame.parts = None
        self._kept.append(frame)

    def acknowledge(self, number: int) -> None:
        count = (number - self._kept_from) % _NUMBERS
        if count <= len(self._kept):
            for _ in range(count):
                self._kept.popleft()
            self._kept_from = number

    def resend(self, number: int) -> None:
        count = (number - self._kept_from) % _NUMBERS
        if count > len(self._kept):
            raise CorruptFrame(self.peer, f"frame {number} was asked for, which is not kept")
        self._out = deque(frame for frame in self._out if frame.header.kind != _RESUME)
        if self._out:
            self._out[0].parts = None  # once more from its beginning
        for _ in range(len(self._kept) - count):
            frame = self._kept.pop()
            self.traffic.resent += len(frame.payload)
            self._out.appendleft(frame)
        self._mark(_RESUME, number, 0)
        self.flush()

    def ask(self, number: int) -> None:
        self._askings += 1
        begun = bool(self._out) and self._out[0].parts is not None
        self._mark(_ASK, number, int(begun))
        self.flush()

    def _mark(self, kind: int, number: int, at: int) -> None:
        for _ in range(_COPIES):
            mark = _Frame(Header(kind, *_SIGN), b"", None)
            mark.number, mark.asking, mark.own = number, self._askings, True
            self._out.insert(at, mark)

    # Receiving.

    def peek(self) -> Header | None:
        while self._header is None:
            if self.seeking and not self._seek():
                return None
            if self._stop - self._start < _HEAD_BYTES and not self._fill(_HEAD_BYTES):
                return None
            head = bytes(self._ahead[self._start : self._start + _HEAD_BYTES])
            self._start += _HEAD_BYTES
            magic, kind, checked, *header, number, self._crc = _FIELDS.unpack_from(head)
            if magic != MAGIC or ((checked or self._checked) and not _intact(head)):
                raise self._garbled("a frame's header came with other bits")
            if kind == _ASK:
                self._answer(number, self._crc)
                continue
            if number != self._expected:
                raise self._garbled(f"frame {number} came instead of {self._expected}")
            if kind != _RESUME:
                self._header = Header(kind, *header)
                self._at = 0
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
        size = _HEAD_BYTES + self._header.num_bytes
        self.traffic.received += size
        self._since += size
        self._expected = (self._expected + 1) % _NUMBERS
        self._times = 0
        self._header = None

    def receipt(self) -> int | None:
        frames = (self._expected - self._receipt_at) % _NUMBERS
        if not self._again or (self._since < _RECEIPT_BYTES and frames < _RECEIPT_FRAMES):
            return None
        self._receipt_at, self._since = self._expected, 0
        return self._expected

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _checked_payload(self, payload: memoryview) -> memoryview:
        if self._checked and len(payload) and crc32c(payload) != self._crc:
            raise self._garbled(f"a frame of {len(payload)} bytes came with other bits")
        return payload

    def _garbled(self, what: str) -> CorruptFrame:
        self._header = None
        if not self._again or self._times == _MOST_REPEATS:
            return CorruptFrame(self.peer, what)
        self._times += 1
        self.seeking = True
        return CorruptFrame(self.peer, what, again=self._expected)

    def _seek(self) -> bool:
        """Throws away what comes before the sender goes back to the frame that is missing."""
        while True:
            at = bytes(self._ahead[self._start : self._stop]).find(_SIGN_BYTES, _SIGN_AT)
            if at < 0:
                self._start = max(self._start, self._stop - _SIGN_AT - len(_SIGN_BYTES) + 1)
                if not self._fill(self._stop - self._start + 1):
                    return False
                continue
            self._start += at - _SIGN_AT
            if self._stop - self._start < _HEAD_BYTES and not self._fill(_HEAD_BYTES):
                return False
            head = bytes(self._ahead[self._start : self._start + _HEAD_BYTES])
            if _intact(head):
                _, kind, *_, number, asking = _FIELDS.unpack_from(head)
                if kind == _ASK:
                    self._answer(number, asking)
                elif number == self._expected:
                    self.seeking = False
                    return True
            self._start += 1

    def _answer(self, number: int, asking: int) -> None:
        if asking != self._answered:
            self._answered = asking
            self.resend(number)

    def _fill(self, wanted: int) -> bool:
        """Reads ahead; whether so many bytes are there now."""
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
        return self._stop >= wanted

    def _gone(self, error: OSError | None = None) -> PeerGone:
        return PeerGone(self.peer, str(error) if error else "the connection was closed")


def _intact(head: bytes) -> bool:
    return crc32c(head[: _FIELDS.size]) == _CHECK.unpack_from(head, _FIELDS.size)[0]


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that the peer's host does not have yet, and may still get."""
    try:
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            return 0
        left = fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):  # closed, or a system that cannot tell
        return 0
    return int.from_bytes(left, sys.byteorder)
