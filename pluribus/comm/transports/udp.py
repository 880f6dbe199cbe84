"""Paced UDP with selective repair, for links that lose packets or are far away.

A path is a stream of bytes in each direction, cut into datagrams; frames stand in it one behind
the other. The receiver names the ranges it misses (selective NACK), the sender paces by
`RateControl`. The kernel cuts and joins datagrams where it can (UDP_SEGMENT, UDP_GRO). One thread
per path moves datagrams; the engine only copies to and from the rings.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from pluribus.comm.transports.base import (
    HEADER_BYTES,
    CorruptFrame,
    Header,
    Meeting,
    Path,
    PeerGone,
    Traffic,
    Transport,
    pack,
    unpack,
)
from pluribus.comm.transports.datagram import HEAD_BYTES, read_ring
from pluribus.comm.transports.flow import KEEP_ALIVE, Flow, FlowOptions
from pluribus.comm.transports.incoming import Missing

IP_MTU, IP_MTU_DISCOVER = 14, 10  # linux/in.h; 0: let the network cut what is too long
IPV6_MTU = 24  # linux/in6.h
UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
SOCKET_BYTES = 4 << 20
BATCHES = 16  # datagram batches taken before it is somebody else's turn
_AT_HOME = (
    errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.ENETDOWN,
)  # fmt: skip


class UdpPath(Path):
    """One UDP socket to one peer; see `Path`.

    Attributes:
        missing: of the frame that was received last, what was lost and reads as zeros; never
            anything unless the options allow loss.
    """

    drains: ClassVar[bool] = True

    def __init__(self, peer: int, sock: socket.socket, flow: Flow, silence: float) -> None:
        self.peer = peer
        self.traffic = Traffic()
        self.missing: tuple[Missing, ...] = ()
        self._flow, self._socket, self._silence = flow, sock, silence
        self._queue: deque[tuple[np.ndarray, Callable[[], None] | None]] = deque()
        self._header: Header | None = None
        self._buffer: np.ndarray | None = None
        self._got = 0
        self._frame_at = 0
        self._failure: str | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._news, self._wake = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        self._segments = True
        self.heard = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"udp-{peer}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # The engine's side.

    def fileno(self) -> int:
        return self._news

    @property
    def wants_write(self) -> bool:
        return False  # the descriptor becomes readable when there is room again

    @property
    def delivered(self) -> bool:
        if self._failure is not None or self._closing:
            return True
        outgoing = self._flow.outgoing
        return not self._queue and outgoing.room == len(outgoing.ring)

    @property
    def silent(self) -> bool:
        return self._failure is not None

    def withdraw(self) -> None:
        self._queue.clear()

    def queue(
        self, header: Header, payload: memoryview, done: Callable[[], None] | None = None
    ) -> None:
        # Datagrams have their own checksums, and a payload with zeros filled in has no other.
        self._queue.append((np.frombuffer(pack(header, checked=False), np.uint8), None))
        self._queue.append((np.frombuffer(payload, np.uint8), done))

    def flush(self) -> None:
        if self._failure is not None or self._closing:
            return  # reading says so
        finished, wrote = [], False
        while self._queue:
            data, done = self._queue[0]
            with self._lock:
                size = self._flow.outgoing.write(data) if len(data) else 0
            wrote = wrote or size > 0
            if size < len(data):
                self._queue[0] = data[size:], done
                break
            self._queue.popleft()
            if done is not None:
                finished.append(done)
        if wrote:
            self._signal(self._wake)
        for done in finished:
            done()

    @property
    def _unread(self) -> int:
        return self._flow.incoming.mark - self._flow.incoming.consumed

    def peek(self) -> Header | None:
        self._take_news()
        if self._header is None:
            incoming = self._flow.incoming
            if self._unread < HEADER_BYTES:
                self._check()
                return None
            self._frame_at = incoming.consumed
            try:
                self._header = unpack(self._read(HEADER_BYTES).tobytes())
            except ValueError as error:
                raise CorruptFrame(self.peer, str(error)) from error
        return self._header

    def receive(self, into: memoryview | None = None) -> memoryview | None:
        assert self._header is not None
        self._take_news()
        size = self._header.num_bytes
        if self._buffer is None:
            made = into is None
            self._buffer = np.empty(size, np.uint8) if made else np.frombuffer(into, np.uint8)
        incoming = self._flow.incoming
        ready = min(size - self._got, self._unread)
        if ready:
            self._buffer[self._got : self._got + ready] = self._read(ready)
            self._got += ready
        if self._got < size:
            self._check()
            return None
        with self._lock:
            self.missing = tuple(incoming.missing.pop(self._frame_at, ()))
        return memoryview(self._buffer)

    def _take_news(self) -> None:
        """The descriptor stands for bytes that came and for room to send alike."""
        _drain(self._news)
        if self._queue:
            self.flush()

    def release(self) -> None:
        self._header, self._buffer, self._got = None, None, 0

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._signal(self._wake)
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        os.close(self._wake)
        os.close(self._news)
        self._news = -1

    def _read(self, size: int) -> np.ndarray:
        incoming = self._flow.incoming
        data = read_ring(incoming.ring, incoming.consumed, size)
        incoming.consumed += size
        if incoming.limit - incoming.told_limit >= len(incoming.ring) // 4:
            self._signal(self._wake)
        return data

    def _check(self) -> None:
        if self._failure is not None:
            raise PeerGone(self.peer, self._failure)
        if self._closing:
            raise PeerGone(self.peer, "the path is closed")

    @staticmethod
    def _signal(descriptor: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(descriptor, 1)

    # The thread's side.

    def _run(self) -> None:
        try:
            self._move()
        except OSError as error:
            self._failure = f"UDP to rank {self.peer}: {error.strerror or error}"
        if self._closing:
            with contextlib.suppress(OSError):
                self._socket.send(self._flow.goodbye(time.monotonic()))
        else:
            self._signal(self._news)

    def _move(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        batch = bytearray(1 << 16)
        flow, heard, silent, last = self._flow, None, 0.0, time.monotonic()
        while not self._closing:
            now = time.monotonic()
            # What this process slept through is not the peer's silence.
            silent += min(now - last, 2 * KEEP_ALIVE)
            last = now
            sent = self._send(now)
            # Waiting in milliseconds: less than one is rounded up, and the pacing catches up.
            for descriptor, _ in poll.poll(0 if sent else max(1, round(flow.wait(now) * 1e3))):
                if descriptor == self._wake:
                    _drain(self._wake)
            before = flow.incoming.mark, flow.outgoing.acknowledged
            self._hear(batch)
            if (flow.incoming.mark, flow.outgoing.acknowledged) != before:
                self._signal(self._news)
            self.traffic.resent = flow.outgoing.resent
            if flow.ended:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the path")
            if flow.heard_at != heard:
                heard, silent = flow.heard_at, 0.0
                self.heard.set()
            if silent > self._silence:
                raise TimeoutError(errno.ETIMEDOUT, f"silent for {self._silence:g} s")

    def _hear(self, batch: bytearray) -> None:
        for _ in range(BATCHES):
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into(
                    [batch], socket.CMSG_SPACE(4), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            stride = size
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_UDP and kind == UDP_GRO:
                    stride = struct.unpack_from("=i", value)[0]
            if size:
                self.traffic.received += size
                with self._lock:
                    self._flow.heard(memoryview(batch)[:size], stride, time.monotonic())

    def _send(self, now: float) -> bool:
        """Sends one burst; false if none may go now."""
        with self._lock:
            made = self._flow.speak(now)
        if made is None:
            return False
        data, stride = made
        self.traffic.sent += len(data)
        try:
            if len(data) <= stride:
                self._socket.send(data)
            elif self._segments:
                size = struct.pack("=H", stride)
                self._socket.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, size)])
            else:
                for start in range(0, len(data), stride):
                    self._socket.send(data[start : start + stride])
        except OSError as error:
            if error.errno in _AT_HOME:
                pass  # lost before it left; the peer will ask for it
            elif self._segments and error.errno in (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP):
                self._segments = False  # this kernel or card cannot; what was cut counts as lost
            else:
                raise
        return True


class UdpTransport(Transport):
    """UDP paths to every peer.

    Args:
        lanes: paths to each peer.
    """

    name: ClassVar[str] = "udp"

    def __init__(self, options: FlowOptions | None = None, lanes: int = 1) -> None:
        self._options = options or FlowOptions()
        self.lanes = lanes

    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        family = socket.AF_INET6 if ":" in meeting.address else socket.AF_INET
        sockets: dict[tuple[int, int], socket.socket] = {}
        paths: dict[int, list[Path]] = {peer: [] for peer in meeting.peers}
        sizes: dict[int, int] = {}
        try:
            for peer in meeting.peers:
                opened = [_open(family, meeting.address) for _ in range(self.lanes)]
                sockets |= {(peer, lane): sock for lane, sock in enumerate(opened)}
                ports = " ".join(str(sock.getsockname()[1]) for sock in opened)
                meeting.store.set(f"udp/{meeting.rank}/{peer}", f"{meeting.address} {ports}")
            for peer in meeting.peers:
                where = meeting.store.get(f"udp/{peer}/{meeting.rank}").decode()
                address, *ports = where.split()
                for lane, port in enumerate(ports):
                    sockets[peer, lane].connect((address, int(port)))
                sizes[peer] = self._datagram_bytes(sockets[peer, 0], family)
                meeting.store.set(f"udp-size/{meeting.rank}/{peer}", str(sizes[peer]))
            for peer in meeting.peers:
                theirs = int(meeting.store.get(f"udp-size/{peer}/{meeting.rank}"))
                for lane in range(self.lanes):
                    flow = Flow(
                        self._options, _keys(meeting, peer, lane), meeting.epoch,
                        min(theirs, sizes[peer]) - HEAD_BYTES, seed=meeting.rank,
                    )  # fmt: skip
                    path = UdpPath(peer, sockets[peer, lane], flow, self._options.silence_seconds)
                    paths[peer].append(path)
                    path.start()
            end = time.monotonic() + meeting.timeout
            for path in (path for of_peer in paths.values() for path in of_peer):
                assert isinstance(path, UdpPath)
                while not path.heard.wait(0.02):
                    meeting.check()
                    if time.monotonic() > end:
                        raise PeerGone(path.peer, f"rank {path.peer} does not answer by UDP")
        except BaseException:
            for path in (path for of_peer in paths.values() for path in of_peer):
                path.close()
            for sock in sockets.values():
                sock.close()
            raise
        return paths

    def _datagram_bytes(self, sock: socket.socket, family: int) -> int:
        six = family == socket.AF_INET6
        mtu = sock.getsockopt(*((socket.IPPROTO_IPV6, IPV6_MTU) if six else (0, IP_MTU)))
        return min(mtu - (48 if six else 28), self._options.largest_datagram)


def _open(family: int, address: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    if family == socket.AF_INET:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
    return sock


def _keys(meeting: Meeting, peer: int, lane: int) -> tuple[bytes, bytes]:
    """Of what this rank sends to the peer, and of what it hears from it."""

    def key(sender: int, receiver: int) -> bytes:
        text = f"{sender}>{receiver}/{lane}@{meeting.epoch}".encode()
        return hashlib.blake2b(text, key=meeting.token[:64], digest_size=8).digest()

    return key(meeting.rank, peer), key(peer, meeting.rank)


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(descriptor)
