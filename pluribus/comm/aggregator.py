"""In-network reduction in software: a process that sums chunks of all ranks and sends sums back.

Each rank sends its bytes once and gets the sum once, where a ring sends them 2 (N-1)/N times in
2 (N-1) steps. Protocol after SwitchML (Sapio et al., NSDI 2021, §3): a fixed pool of slots, a rank
uses a slot again only when it has the slot's last sum, ranks send again what is not answered, and
a slot keeps its last sum for a rank that missed it. Sums are taken in the order of ranks, so
every run gives the same bits. It pays where the aggregator's link carries all ranks' at once.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pluribus.comm.native.crc32c import crc32c
from pluribus.core.errors import ConfigError

JOIN, JOINED, PART, SUM, MOVED = 1, 2, 3, 4, 5
DTYPES = (np.dtype(np.float32), np.dtype(np.int32))
CHUNK_BYTES = 32 << 10  # one datagram; a few IP fragments each spare the interpreter
SLOTS = 32  # chunks a rank may have on the way: 1 MiB
MOST_RANKS = 64
POLL_SECONDS = 0.1

_HEAD = struct.Struct("<8sBBBBIIIQ")
_CRC = struct.Struct("<I")


class Note(NamedTuple):
    """One datagram. ``nonce``: which start of the rank's process (JOIN), else 0."""

    kind: int
    rank: int
    dtype: int
    epoch: int
    operation: int
    chunk: int
    nonce: int = 0
    payload: bytes | memoryview = b""


def key_of(token: str) -> bytes:
    return hashlib.blake2b(token.encode()[:64], digest_size=8, person=b"aggregator").digest()


def pack(key: bytes, note: Note) -> bytes:
    kind, rank, dtype, epoch, operation, chunk, nonce, payload = note
    head = _HEAD.pack(key, kind, rank, dtype, 0, epoch, operation, chunk, nonce)
    return head + _CRC.pack(crc32c(payload, crc32c(head))) + bytes(payload)


def unpack(key: bytes, data: bytes) -> Note | None:
    """The note in a datagram; None if it is damaged or a stranger's."""
    if len(data) < _HEAD.size + _CRC.size:
        return None
    head, payload = data[: _HEAD.size], memoryview(data)[_HEAD.size + _CRC.size :]
    found, kind, rank, dtype, _, epoch, operation, chunk, nonce = _HEAD.unpack(head)
    if crc32c(payload, crc32c(head)) != _CRC.unpack_from(data, _HEAD.size)[0]:
        return None
    if found != key or dtype >= len(DTYPES):
        return None
    return Note(kind, rank, dtype, epoch, operation, chunk, nonce, payload)


@dataclass
class _Slot:
    """One chunk of one operation: who contributed, then the sum."""

    parts: dict[int, np.ndarray] = field(default_factory=dict)
    sum: bytes | None = None


class Aggregator:
    """Sums for one group of ``num_ranks``.

    Args:
        host: IP address to listen on; beyond loopback a token is needed.
        port: 0 chooses one; see `address`.

    Raises:
        ConfigError: listening beyond loopback without a token, or too many ranks.
    """

    def __init__(
        self, num_ranks: int, host: str = "127.0.0.1", port: int = 0, token: str = ""
    ) -> None:
        if not 1 <= num_ranks <= MOST_RANKS:
            raise ConfigError(f"{num_ranks} ranks", do=f"1 to {MOST_RANKS} ranks can be summed.")
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            raise ConfigError(f"'{host}' is no IP address", do="Give one of this host's.") from None
        if not token and not loopback:
            raise ConfigError(
                f"listening on {host} would let anybody add to the sums",
                do="Give a token, the same to every rank.",
            )
        self._num_ranks, self._key = num_ranks, key_of(token)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"cannot listen: {error.strerror}", where=f"{host}:{port}") from None
        self._socket.settimeout(POLL_SECONDS)
        self.epoch = 0
        self._nonces: dict[int, int] = {}
        self._where: dict[int, tuple] = {}
        self._slots: list[dict[tuple[int, int], _Slot]] = [{} for _ in range(SLOTS)]

    @property
    def address(self) -> tuple[str, int]:
        return self._socket.getsockname()[:2]

    def serve(self, stop: threading.Event) -> None:
        """Answers until ``stop`` is set."""
        try:
            while not stop.is_set():
                try:
                    data, where = self._socket.recvfrom(1 << 16)
                except TimeoutError:
                    continue
                except ConnectionError:  # a rank that left did not take its sum
                    continue
                note = unpack(self._key, data)
                if note is not None and note.rank < self._num_ranks:
                    self._answer(note, where)
        finally:
            self._socket.close()

    def _answer(self, note: Note, where: tuple) -> None:
        if note.kind == JOIN:
            self._join(note, where)
        elif note.kind == PART:
            if note.epoch != self.epoch:
                self._send(Note(MOVED, note.rank, 0, self.epoch, 0, 0), where)
            elif self._where.get(note.rank) == where:
                self._add(note, where)

    def _join(self, note: Note, where: tuple) -> None:
        """A rank (re)starts: one that was in already begins a new epoch for all."""
        if self._nonces.get(note.rank, note.nonce) != note.nonce:
            self.epoch += 1
            self._nonces.clear()
            self._where.clear()
            self._slots = [{} for _ in range(SLOTS)]
        self._nonces[note.rank] = note.nonce
        self._where[note.rank] = where
        if len(self._nonces) == self._num_ranks:
            for rank, place in self._where.items():
                self._send(Note(JOINED, rank, 0, self.epoch, 0, 0, self._nonces[rank]), place)

    def _add(self, note: Note, where: tuple) -> None:
        generations = self._slots[note.chunk % SLOTS]
        name = note.operation, note.chunk
        if generations and name < min(generations):
            return  # a late copy of what every rank has had
        if name not in generations:
            # A rank is at most one generation ahead of another, so the last sum is all that
            # anybody can still ask for (SwitchML's two pools).
            while len(generations) > 1:
                del generations[next(iter(generations))]
            generations[name] = _Slot()
        slot = generations[name]
        if slot.sum is not None:
            self._send(note._replace(kind=SUM, payload=slot.sum), where)
            return
        slot.parts[note.rank] = np.frombuffer(note.payload, DTYPES[note.dtype])
        if len(slot.parts) < self._num_ranks:
            return
        total = slot.parts[0].copy()
        for rank in range(1, self._num_ranks):
            total += slot.parts[rank]
        slot.sum = total.tobytes()
        slot.parts.clear()
        for rank, place in self._where.items():
            self._send(note._replace(kind=SUM, rank=rank, payload=slot.sum), place)

    def _send(self, note: Note, where: tuple) -> None:
        try:
            self._socket.sendto(pack(self._key, note), where)
        except OSError:
            return  # lost; the rank asks again
