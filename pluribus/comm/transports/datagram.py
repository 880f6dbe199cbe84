"""Datagrams of the UDP transport: 32 bytes of header, then a piece of the stream.

| bytes | |
|---|---|
| 0-7 | key of this direction of this path, from the group's token: strangers are not heard |
| 8 | kind |
| 9 | zero |
| 10-11 | bytes of payload |
| 12-15 | epoch |
| 16-23 | position of the first payload byte in the stream: the sequence number |
| 24-27 | sender's clock, microseconds |
| 28-31 | crc32c of all the rest |

The loops over datagrams are in `kernel.c`; the ones here do the same without a compiler.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from pluribus.comm.native.build import kernel
from pluribus.comm.native.crc32c import crc32c

DATA, PARITY, FEEDBACK, BYE = 1, 2, 3, 4
DAMAGED, FOREIGN = 0, 255

HEAD_BYTES = 32
_HEAD = struct.Struct("<8sBBHIQI")
_CRC = struct.Struct("<I")
_FEEDBACK = struct.Struct("<QQQQQQII")
_HOLE = struct.Struct("<QI")
MOST_HOLES = 100


class Found(NamedTuple):
    """One datagram of a batch: kind (or DAMAGED, FOREIGN), position, size, where its payload is."""

    kind: int
    position: int
    size: int
    start: int


class Feedback(NamedTuple):
    """What a receiver tells: positions, bytes, seconds of its clock.

    Attributes:
        mark: everything before it is here.
        highest: end of the furthest that is here.
        limit: the sender may send up to it.
        arrived: bytes that came, each position once, zero-filled ones not included.
        filled: bytes given up and filled with zeros.
        clock: when this was written.
        echo: sender's clock in the latest datagram, microseconds modulo 2^32.
        held: microseconds since that datagram came.
        holes: what is missing before ``highest``.
    """

    mark: int
    highest: int
    limit: int
    arrived: int
    filled: int
    clock: float
    echo: int
    held: int
    holes: tuple[tuple[int, int], ...]


def head(key: bytes, kind: int, epoch: int, clock: int) -> bytes:
    """A header whose position, size and checksum are filled in later."""
    return _HEAD.pack(key, kind, 0, 0, epoch, 0, clock) + b"\0\0\0\0"


def clock_of(datagram: memoryview) -> int:
    """The sender's clock in a header."""
    return int.from_bytes(datagram[24:28], "little")


def single(header: bytes, position: int, payload: bytes) -> bytes:
    """One datagram with a payload of its own."""
    fields = bytearray(header)
    struct.pack_into("<H", fields, 10, len(payload))
    struct.pack_into("<Q", fields, 16, position)
    crc = crc32c(payload, crc32c(bytes(fields[:28])))
    return bytes(fields[:28]) + _CRC.pack(crc) + payload


def cut(
    out: np.ndarray, header: bytes, ring: np.ndarray, position: int, size: int, piece: int
) -> int:
    """Writes the ring's bytes [position, position + size) as datagrams into ``out``.

    Returns:
        Bytes written; every datagram but the last has ``piece`` bytes of payload.
    """
    loaded = kernel()
    if loaded is not None:
        return loaded.pluribus_datagrams(
            out.ctypes.data, header, ring.ctypes.data, len(ring), position, size, piece
        )
    written, end = 0, position + size
    for start in range(position, end, piece):
        made = single(header, start, read_ring(ring, start, min(piece, end - start)).tobytes())
        out[written : written + len(made)] = np.frombuffer(made, np.uint8)
        written += len(made)
    return written


def take(
    batch: memoryview, stride: int, header: bytes, ring: np.ndarray, low: int, high: int
) -> list[Found]:
    """Reads datagrams that lie ``stride`` bytes apart; data within [low, high) go into the ring."""
    loaded = kernel()
    if loaded is not None:
        flat = np.frombuffer(batch, np.uint8)
        found = np.empty((-(-len(flat) // stride), 3), np.uint64)
        loaded.pluribus_take(
            flat.ctypes.data, len(flat), stride, header, DATA,
            ring.ctypes.data, len(ring), low, high, found.ctypes.data,
        )  # fmt: skip
        return [
            Found(kind, position, size, i * stride + HEAD_BYTES)
            for i, (kind, position, size) in enumerate(found.tolist())
        ]
    out = []
    for start in range(0, len(batch), stride):
        one = _take_one(batch[start : start + stride], header)
        if one.kind == DATA and low <= one.position and one.position + one.size <= high:
            payload = np.frombuffer(batch, np.uint8, one.size, start + HEAD_BYTES)
            write_ring(ring, one.position, payload)
        out.append(one._replace(start=start + HEAD_BYTES))
    return out


def _take_one(datagram: memoryview, header: bytes) -> Found:
    damaged = Found(DAMAGED, 0, 0, 0)
    if len(datagram) < HEAD_BYTES:
        return damaged
    key, kind, _, size, epoch, position, _ = _HEAD.unpack_from(datagram)
    if len(datagram) != HEAD_BYTES + size:
        return damaged
    crc = crc32c(bytes(datagram[:28]))
    if size:
        crc = crc32c(datagram[HEAD_BYTES:], crc)
    if crc != _CRC.unpack_from(datagram, 28)[0]:
        return damaged
    if key != header[:8] or epoch != int.from_bytes(header[12:16], "little"):
        return Found(FOREIGN, 0, 0, 0)
    return Found(kind, position, size, 0)


def pack_feedback(feedback: Feedback) -> bytes:
    mark, highest, limit, arrived, filled, clock, echo, held, holes = feedback
    fields = _FEEDBACK.pack(
        mark, highest, limit, arrived, filled, round(clock * 1e6), echo, min(held, 2**32 - 1)
    )
    return fields + b"".join(
        _HOLE.pack(start, min(end - start, 2**32 - 1)) for start, end in holes[:MOST_HOLES]
    )


def unpack_feedback(payload: memoryview) -> Feedback | None:
    """Reads feedback; None if the bytes cannot be one."""
    if len(payload) < _FEEDBACK.size or (len(payload) - _FEEDBACK.size) % _HOLE.size:
        return None
    mark, highest, limit, arrived, filled, clock, echo, held = _FEEDBACK.unpack_from(payload)
    holes = tuple(
        (start, start + size) for start, size in _HOLE.iter_unpack(payload[_FEEDBACK.size :])
    )
    return Feedback(mark, highest, limit, arrived, filled, clock / 1e6, echo, held, holes)


def read_ring(ring: np.ndarray, position: int, size: int) -> np.ndarray:
    """A copy of ``size`` bytes from ``position`` on, around the ring's end."""
    start = position % len(ring)
    first = ring[start : start + size]
    return (
        first.copy() if len(first) == size else np.concatenate([first, ring[: size - len(first)]])
    )


def write_ring(ring: np.ndarray, position: int, data: np.ndarray) -> None:
    start = position % len(ring)
    first = min(len(ring) - start, len(data))
    ring[start : start + first] = data[:first]
    ring[: len(data) - first] = data[first:]
