"""Compiles a C source once per user, source and processor, and loads it.

For loops too hot for Python; each has a twin in Python, numpy or torch, used where there is no
compiler. Ranks that start together may all compile; each writes a file of its own and renames it,
so that nobody loads half a file.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# No contraction: a fused multiply-add would give other bits than the twin and than another chip.
BASE_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
FLAG_SETS = (  # the first that compiles is used; the last needs nothing of the processor
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
COMPILE_SECONDS = 60.0

Signature = tuple[object, tuple[object, ...]]  # of a function: its result, its arguments


def default_cache() -> Path:
    """Where compiled libraries of this user lie."""
    return Path.home() / ".cache" / "pluribus" / "native"


def load(
    source: Path,
    signatures: Mapping[str, Signature],
    cache: Path | None = None,
    compilers: Sequence[str] = ("cc", "gcc", "clang"),
) -> ctypes.CDLL | None:
    """The compiled source out of a cache, put there first if need be; None where no compiler is
    found or what it made does not load.

    Calls release the interpreter lock.

    Args:
        signatures: of the functions that are called, by name.
        cache: a directory; not used where another user could write to it.
        compilers: names to look for, in order.
    """
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    cache = default_cache() if cache is None else cache
    with tempfile.TemporaryDirectory(prefix="pluribus-native-") as scratch:
        folder = cache if _own(cache) else Path(scratch)
        library = folder / f"{source.stem}-{_digest(source, compiler)}.so"
        if not library.exists() and not _compile(source, compiler, library):
            return None
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:  # made for another C library, say
            return None
    for name, (result, arguments) in signatures.items():
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


def _compile(source: Path, compiler: str, library: Path) -> bool:
    for flags in FLAG_SETS:
        descriptor, made = tempfile.mkstemp(suffix=".so", dir=library.parent)
        os.close(descriptor)
        try:
            subprocess.run(
                [compiler, *BASE_FLAGS, *flags, str(source), "-o", made],
                check=True, capture_output=True, timeout=COMPILE_SECONDS,
            )  # fmt: skip
            os.replace(made, library)
            return True
        except (subprocess.SubprocessError, OSError):
            Path(made).unlink(missing_ok=True)
    return False


def _digest(source: Path, compiler: str) -> str:
    """Of all that decides the machine code; a home directory may be shared by unlike hosts."""
    digest = hashlib.sha256(source.read_bytes())
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
