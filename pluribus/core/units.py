"""Units: bytes, seconds, rates, as numbers inside and as words for people."""

from __future__ import annotations

import re

from pluribus.core.errors import ConfigError

KIB, MIB, GIB = 2**10, 2**20, 2**30
GBPS_TO_BYTES = 1e9 / 8  # one Gbit/s in bytes per second

DTYPE_BYTES = {
    "fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5,
}  # fmt: skip

_DURATION_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def format_bytes(count: float) -> str:
    """Bytes in binary units: ``format_bytes(3 * GIB) == '3.00 GiB'``."""
    for unit, size in (("TiB", 2**40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration a person reads at a glance: ``12.3 ms``, ``4.56 s``, ``3 h 20 min``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.1f} days"


def format_count(number: float) -> str:
    """A large count with a decimal suffix: ``7.24 B`` for parameters, ``1.2 k`` for tokens."""
    number = float(f"{number:.3g}")  # first, so that 999 600 reads 1 M, not 1e+03 k
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {suffix}"
    return f"{number:.3g}"


def parse_duration(text: str) -> float:
    """Seconds of ``'90s'``, ``'30min'``, ``'72h'`` or ``'3d'``.

    Raises:
        ConfigError: the text is not a number followed by one of s, m, min, h, d.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in _DURATION_UNITS:
        raise ConfigError(
            f"'{text}' is not a duration", do="Write a number and a unit: 90s, 30min, 72h or 3d."
        )
    return float(match[1]) * _DURATION_UNITS[match[2]]
