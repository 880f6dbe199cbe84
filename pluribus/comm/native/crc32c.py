"""CRC-32C (Castagnoli, as in iSCSI): the checksum of every message on a wire."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from pluribus.comm.native.build import kernel

POLYNOMIAL = 0x82F63B78  # reflected; RFC 3720 appendix B.4
LANE = 64  # bytes one lane of the numpy twin goes through


def crc32c(data: bytes | bytearray | memoryview | np.ndarray, crc: int = 0) -> int:
    """Checksum of ``data`` (contiguous), continuing from ``crc``; the value of google-crc32c."""
    loaded = kernel()
    if loaded is None:
        return crc32c_numpy(data, crc)
    if isinstance(data, bytes):  # headers, for which the call is all that takes time
        return loaded.pluribus_crc32c(crc, data, len(data))
    flat = np.frombuffer(data, dtype=np.uint8)
    return loaded.pluribus_crc32c(crc, ctypes.c_void_p(flat.ctypes.data), flat.nbytes)


def crc32c_numpy(data: bytes | bytearray | memoryview | np.ndarray, crc: int = 0) -> int:
    """The same without a compiler: many lanes of bytes side by side, then joined two by two.

    A checksum is linear over GF(2), so that of ``a + b`` is the one of ``a`` moved on by ``b``'s
    length, XORed with the one of ``b``.
    """
    flat = np.frombuffer(data, dtype=np.uint8)
    table = _table()
    lanes = 1 << max((len(flat) // LANE).bit_length() - 1, 0)
    state = (crc ^ 0xFFFFFFFF) & 0xFFFFFFFF
    width = len(flat) // lanes if len(flat) >= 2 * LANE else 0
    if width:
        columns = np.ascontiguousarray(flat[: width * lanes].reshape(lanes, width).T)
        states = np.zeros(lanes, dtype=np.uint32)
        states[0] = state
        for column in columns:
            states = table[(states ^ column) & 0xFF] ^ (states >> 8)
        shift = _shift(width)
        while len(states) > 1:
            states = _apply(shift, states[0::2]) ^ states[1::2]
            shift = _apply(shift, shift)
        state = int(states[0])
    for byte in flat[width * lanes if width else 0 :].tolist():
        state = int(table[(state ^ byte) & 0xFF]) ^ (state >> 8)
    return state ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1)
    return values.astype(np.uint32)


@functools.cache
def _shift(num_bytes: int) -> np.ndarray:
    """The 32 images, of each single bit, under ``num_bytes`` zero bytes."""
    states = (np.uint32(1) << np.arange(32, dtype=np.uint32)).astype(np.uint32)
    table = _table()
    for _ in range(num_bytes):
        states = table[states & 0xFF] ^ (states >> 8)
    return states


def _apply(matrix: np.ndarray, states: np.ndarray) -> np.ndarray:
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= np.where((states >> np.uint32(bit)) & 1, matrix[bit], np.uint32(0))
    return out
