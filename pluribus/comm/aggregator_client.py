"""A rank's side of the aggregator: all-reduce by sending chunks and collecting sums."""

from __future__ import annotations

import secrets
import socket
import time
from collections import deque

import numpy as np

from pluribus.comm.aggregator import (
    CHUNK_BYTES,
    DTYPES,
    JOIN,
    JOINED,
    MOVED,
    PART,
    SLOTS,
    SUM,
    Note,
    key_of,
    pack,
    unpack,
)

FIRST_PATIENCE = 0.05  # s before a chunk is sent again, until round trips are known
SHORTEST_PATIENCE = 0.01
LONGEST_PATIENCE = 0.5


class GroupMovedError(Exception):
    """A rank restarted: what was being summed is void; join again, all of you, and go on."""


class AggregatorClient:
    """One rank of an aggregator's group.

    Args:
        address: host and port of the aggregator.
        timeout: seconds without any progress after which an operation raises `TimeoutError`.
    """

    def __init__(
        self, address: tuple[str, int], rank: int, token: str = "", timeout: float = 30.0
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.connect(address)
        self._rank, self._key, self._timeout = rank, key_of(token), timeout
        self._nonce = secrets.randbits(63)
        self._epoch = self._operation = 0
        self._round_trip = 0.0
        self.resent = 0

    def join(self) -> None:
        """Returns once every rank has joined.

        Raises:
            TimeoutError: they did not.
        """
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            self._send(Note(JOIN, self._rank, 0, 0, 0, 0, self._nonce))
            note = self._hear(0.1)
            while note is not None and (note.kind != JOINED or note.nonce != self._nonce):
                note = self._hear(0.1)
            if note is not None:
                self._epoch, self._operation = note.epoch, 0
                return
        raise TimeoutError(f"not all ranks joined the aggregator within {self._timeout:g} s")

    def all_reduce(self, values: np.ndarray) -> None:
        """Replaces ``values`` (float32 or int32, contiguous) by the sum over all ranks.

        Raises:
            GroupMovedError: a rank restarted meanwhile.
            TimeoutError: nothing came for too long.
        """
        dtype = DTYPES.index(values.dtype)
        flat = values.reshape(-1)
        assert np.shares_memory(flat, values), "values must be contiguous"
        size = CHUNK_BYTES // values.itemsize
        chunks = -(-flat.size // size)
        self._operation += 1
        sent_at: dict[int, tuple[float, bool]] = {}  # chunk -> when, and whether again
        order: deque[int] = deque()
        following = min(SLOTS, chunks)
        for chunk in range(following):
            self._part(dtype, flat, size, chunk, sent_at, order)
        missing, last_news = chunks, time.monotonic()
        while missing:
            note = self._hear(self._patience() / 2)
            now = time.monotonic()
            if note is not None and note.kind == MOVED and note.epoch != self._epoch:
                raise GroupMovedError(f"epoch {self._epoch} became {note.epoch}")
            if self._expected(note, sent_at):
                when, again = sent_at.pop(note.chunk)
                if not again:
                    self._round_trip += (now - when - self._round_trip) / 8
                start = note.chunk * size
                flat[start : start + size] = np.frombuffer(note.payload, values.dtype)
                missing, last_news = missing - 1, now
                if note.chunk + SLOTS < chunks:  # the slot is free for us
                    self._part(dtype, flat, size, note.chunk + SLOTS, sent_at, order)
            self._repeat(dtype, flat, size, sent_at, order, now)
            if now - last_news > self._timeout:
                raise TimeoutError(f"no sum came from the aggregator for {self._timeout:g} s")

    def close(self) -> None:
        self._socket.close()

    def _expected(self, note: Note | None, sent_at: dict[int, tuple[float, bool]]) -> bool:
        return (
            note is not None
            and note.kind == SUM
            and (note.epoch, note.operation) == (self._epoch, self._operation)
            and note.chunk in sent_at
        )

    def _part(self, dtype, flat, size, chunk, sent_at, order, again: bool = False) -> None:
        payload = memoryview(flat[chunk * size : (chunk + 1) * size]).cast("B")
        sent_at[chunk] = time.monotonic(), again
        order.append(chunk)
        self._send(Note(PART, self._rank, dtype, self._epoch, self._operation, chunk, 0, payload))

    def _repeat(self, dtype, flat, size, sent_at, order, now: float) -> None:
        """Sends again what has waited too long; the oldest is first in ``order``."""
        patience = self._patience()
        while order and (order[0] not in sent_at or now - sent_at[order[0]][0] > patience):
            chunk = order.popleft()
            if chunk in sent_at:
                self.resent += 1
                self._part(dtype, flat, size, chunk, sent_at, order, again=True)

    def _patience(self) -> float:
        if self._round_trip == 0:
            return FIRST_PATIENCE
        return min(max(4 * self._round_trip, SHORTEST_PATIENCE), LONGEST_PATIENCE)

    def _send(self, note: Note) -> None:
        try:
            self._transmit(pack(self._key, note))
        except (ConnectionError, BlockingIOError):
            return  # the aggregator is not there yet, or our queue is full: sent again later

    def _hear(self, seconds: float) -> Note | None:
        self._socket.settimeout(max(seconds, 1e-3))
        try:
            return unpack(self._key, self._receive())
        except (TimeoutError, ConnectionError):
            return None

    def _transmit(self, data: bytes) -> None:
        self._socket.send(data)

    def _receive(self) -> bytes:
        return self._socket.recv(1 << 16)
