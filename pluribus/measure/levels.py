"""Instruction-set levels: one processor as several unlike chips.

The libraries under PyTorch read a few variables once, when a process starts, and from then on
use no newer instructions. Which variable matters depends on the processor: fp32 matrix products
go through MKL, which obeys MKL_ENABLE_INSTRUCTIONS on Intel's processors and ignores it on
others; there MKL_CBWR=COMPATIBLE makes it leave its fast kernels. ATEN_CPU_CAPABILITY caps
PyTorch's own elementwise kernels and ONEDNN_MAX_CPU_ISA oneDNN. A level therefore is a name with
all the variables that produce it, and what it really does to the speed is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# A cap that leaves more than this share of the speed does not make an unlike chip.
UNLIKE_SHARE = 0.75
# Levels this close to the fastest count as equally fast, so that noise does not choose.
_AS_FAST_SHARE = 0.9


@dataclass(frozen=True)
class Level:
    """A cap on the instruction set.

    Attributes:
        name: the newest instruction set in use, e.g. ``avx2``.
        environment: variables of the process; empty for the processor as it is.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)


def native_level(flags: frozenset[str], machine: str) -> Level:
    """The processor without a cap.

    Args:
        flags: instruction sets as Linux names them.
        machine: the architecture, which names a processor of another family.
    """
    for flag, name in (("avx512f", "avx512"), ("avx2", "avx2"), ("sse4_2", "sse4.2")):
        if flag in flags:
            return Level(name)
    return Level(machine)


def capped_levels(native: Level, vendor: str) -> tuple[Level, ...]:
    """Levels below the native one, the highest first."""
    avx2 = Level(
        "avx2",
        {
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        },
    )
    off_intel = {} if vendor == "Intel" else {"MKL_CBWR": "COMPATIBLE"}
    sse = Level(
        "sse4.2",
        {
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            **off_intel,
        },
    )
    return {"avx512": (avx2, sse), "avx2": (sse,)}.get(native.name, ())


def choose_pair(rates: Mapping[str, float]) -> tuple[str, str] | None:
    """The two levels that make unlike chips.

    Args:
        rates: FLOP/s by level, from the least capped to the most capped.

    Returns:
        The least capped of the fastest levels and the most capped of those at most
        `UNLIKE_SHARE` as fast as it; None when no cap slows the processor down that much.
    """
    best = max(rates.values())
    fast = next(name for name, rate in rates.items() if rate >= _AS_FAST_SHARE * best)
    slow = [name for name, rate in rates.items() if rate <= UNLIKE_SHARE * rates[fast]]
    return (fast, slow[-1]) if slow else None
