"""What the operating system says of this machine: its processor, usable cores and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{core}/topology/{key}"
_CGROUP = Path("/sys/fs/cgroup")
_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon"}


@dataclass(frozen=True, kw_only=True)
class Host:
    """This machine.

    Attributes:
        name: of the processor.
        vendor: ``Intel``, ``AMD``, …; empty where unknown.
        flags: instruction sets as Linux names them, e.g. ``avx2``; empty elsewhere.
        cores: usable cores, neighbours next to each other; see `choose_cores`.
        memory_bytes: RAM this process may use.
    """

    name: str
    vendor: str
    flags: frozenset[str]
    cores: tuple[int, ...]
    memory_bytes: int


def look_at_host() -> Host:
    """Reads the machine; a container's own limits count as the machine's."""
    text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    name, vendor, flags = parse_cpuinfo(text)
    return Host(
        name=name or platform.processor() or platform.machine(),
        vendor=vendor,
        flags=flags,
        cores=choose_cores(_places(), _core_quota()),
        memory_bytes=_memory_bytes(),
    )


def parse_cpuinfo(text: str) -> tuple[str, str, frozenset[str]]:
    """Name, vendor and instruction sets of the first processor in ``/proc/cpuinfo``."""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    table = {key.strip(): value.strip() for key, _, value in pairs}
    vendor = table.get("vendor_id", "")
    flags = table.get("flags", table.get("Features", ""))
    return table.get("model name", ""), _VENDORS.get(vendor, vendor), frozenset(flags.split())


def choose_cores(
    places: Mapping[int, tuple[int, int]], quota: float | None = None
) -> tuple[int, ...]:
    """The cores to compute on, in an order that can be cut into halves.

    Two threads of one physical core share its arithmetic units, so a half must never get one
    and the other half the other: of each physical core the first thread is taken. Only where
    there is a single physical core do its threads count as cores.

    Args:
        places: (package, physical core) of each usable core.
        quota: cores' worth of time a container may use; None for no limit.
    """
    first: dict[tuple[int, int], int] = {}
    for core in sorted(places):
        first.setdefault(places[core], core)
    cores = [first[place] for place in sorted(first)]
    if len(cores) == 1:
        cores = sorted(places)
    limit = len(cores) if quota is None else max(1, int(quota))
    return tuple(cores[:limit])


def halves(cores: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two sets of cores as equal as can be; the first is the larger one."""
    middle = (len(cores) + 1) // 2
    return cores[:middle], cores[middle:]


def _places() -> dict[int, tuple[int, int]]:
    if not hasattr(os, "sched_getaffinity"):
        return {core: (0, core) for core in range(os.cpu_count() or 1)}
    return {
        core: (_topology(core, "physical_package_id", 0), _topology(core, "core_id", core))
        for core in os.sched_getaffinity(0)
    }


def _topology(core: int, key: str, otherwise: int) -> int:
    number = _number(Path(_TOPOLOGY.format(core=core, key=key)))
    return otherwise if number is None else int(number)


def _core_quota() -> float | None:
    unified = _CGROUP / "cpu.max"
    if unified.exists():
        quota, period = unified.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us = _number(_CGROUP / "cpu" / "cpu.cfs_quota_us")
    period_us = _number(_CGROUP / "cpu" / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or quota_us < 0:
        return None
    return quota_us / period_us


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes")
    return min([total, *(int(n) for n in map(_number, limits) if n is not None)])


def _number(path: Path) -> float | None:
    """The number in a small file of the kernel; None where there is no file or no number."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
