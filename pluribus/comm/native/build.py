"""Compiles `kernel.c` once per user, source and processor, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.c")

# No contraction: a fused multiply-add would give other bits than torch and than another chip.
BASE_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
FLAG_SETS = (  # the first that compiles is used; the last needs nothing of the processor
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
COMPILE_SECONDS = 60.0

POINTER, SIZE, U32, U64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint64
SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
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
    return load(Path.home() / ".cache" / "pluribus" / "native")


def load(cache: Path, compilers: Sequence[str] = ("cc", "gcc", "clang")) -> ctypes.CDLL | None:
    """The kernel out of ``cache``, compiled into it first if it is not there.

    Ranks that start together may all compile; each writes a file of its own and renames it, so
    that nobody loads half a file. A cache that another user could write to is not used.
    """
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pluribus-native-") as scratch:
        folder = cache if _own(cache) else Path(scratch)
        library = folder / f"kernel-{_digest(compiler)}.so"
        if not library.exists() and not _compile(compiler, library):
            return None
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:  # made for another C library, say
            return None
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def _own(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _compile(compiler: str, library: Path) -> bool:
    for flags in FLAG_SETS:
        descriptor, made = tempfile.mkstemp(suffix=".so", dir=library.parent)
        os.close(descriptor)
        try:
            subprocess.run(
                [compiler, *BASE_FLAGS, *flags, str(SOURCE), "-o", made],
                check=True, capture_output=True, timeout=COMPILE_SECONDS,
            )  # fmt: skip
            os.replace(made, library)
            return True
        except (subprocess.SubprocessError, OSError):
            Path(made).unlink(missing_ok=True)
    return False


def _digest(compiler: str) -> str:
    """Of all that decides the machine code; a home directory may be shared by unlike hosts."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(repr((compiler, BASE_FLAGS, FLAG_SETS, platform.machine())).encode())
    digest.update(_processor_flags().encode())
    return digest.hexdigest()[:20]


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
