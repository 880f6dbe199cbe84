"""The compiled `kernel.c`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

from pluribus.core import native

SOURCE = Path(__file__).with_name("kernel.c")

POINTER, SIZE, U32, U64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint64
SIGNATURES: dict[str, native.Signature] = {
    "pluribus_int8_encode": (None, (POINTER, POINTER, POINTER, POINTER, SIZE)),
    "pluribus_int8_decode": (None, (POINTER, POINTER, POINTER, SIZE, ctypes.c_int)),
    "pluribus_int8_decode_sum": (None, (POINTER, POINTER, POINTER, POINTER, POINTER, SIZE)),
    "pluribus_int4_encode": (None, (POINTER, POINTER, POINTER, POINTER, SIZE, U64)),
    "pluribus_int4_decode": (None, (POINTER, POINTER, POINTER, SIZE, U64, ctypes.c_int)),
    "pluribus_crc32c": (U32, (U32, POINTER, SIZE)),
    "pluribus_datagrams": (SIZE, (POINTER, POINTER, POINTER, SIZE, U64, SIZE, SIZE)),
    "pluribus_take": (
        SIZE,
        (POINTER, SIZE, SIZE, POINTER, ctypes.c_uint8, POINTER, SIZE, U64, U64, POINTER),
    ),
}


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """The compiled loops, or None where no C compiler is found or what it made does not load.

    Calls release the interpreter lock.
    """
    return load(native.default_cache())


def load(cache: Path, compilers: Sequence[str] = ("cc", "gcc", "clang")) -> ctypes.CDLL | None:
    """The kernel out of ``cache``; see `native.load`."""
    return native.load(SOURCE, SIGNATURES, cache, compilers)
