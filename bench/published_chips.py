"""Reads the chips of published runs: the words of a cell become a pool of the catalogue's chips."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.chip import Chip
from pluribus.hardware.pool import Pool

# Network of one chip in Gbit/s and chips per node where a row does not say: the vendor's
# reference system.
_SYSTEMS = {
    "V100": (50.0, 16), "A100": (200.0, 8), "A800": (200.0, 8), "H100": (400.0, 8),
    "H800": (400.0, 8), "H200": (400.0, 8), "B200": (400.0, 8), "B300": (800.0, 8),
    "GB200": (400.0, 64), "GB300": (800.0, 64),
}  # fmt: skip


class UnusableError(Exception):
    """Why a row cannot be predicted."""


@functools.lru_cache(maxsize=256)
def pool_of(gpu: str, chips: int) -> Pool:
    chip = _chip(gpu)
    family = next((name for name in sorted(_SYSTEMS, key=len)[::-1] if name in gpu.upper()), "")
    gbps, per_node = _SYSTEMS.get(family, (200.0, 8))
    if found := re.search(r"(\d+)\s*x\s*(?:[A-Za-z-]+\s*)?(\d{3})\b", gpu):
        gbps = int(found[1]) * int(found[2]) / per_node
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)[^,)]*per GPU", gpu):
        gbps = float(found[1])
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)", gpu):
        gbps = float(found[1]) / per_node
    nodes = max(1, -(-chips // per_node))
    return Pool(
        address="published/pool", chip=chip, nodes=nodes, chips_per_node=per_node, nic_gbps=gbps
    )


def _chip(gpu: str) -> Chip:
    """The catalogue's chip whose part number the text holds, nearest in memory."""
    text = gpu.upper().replace("-", " ")
    memory = re.search(r"(\d+)\s*GB\b(?!/)", text)
    wanted = float(memory[1]) if memory else None
    fits = []
    for chip in load_catalogue().values():
        part = re.match(r"[a-z0-9]+-([a-z0-9]+)", chip.key)
        if part and re.search(rf"\b{part[1].upper()}\b", text):
            pcie = ("PCIE" in text) != ("pcie" in chip.key)
            fits.append((pcie, abs(chip.memory_gib - (wanted or chip.memory_gib)), chip))
    if not fits:
        raise UnusableError(f"unknown chip '{gpu}'")
    chip = min(fits, key=lambda fit: fit[:2])[2]
    changes: dict[str, object] = {}
    if re.search(r"\bDGX 2\b", text):
        # Joined by a switch, where eight V100 elsewhere are a mesh.
        changes["key"] = f"{chip.key}-nvswitch"
    if wanted and abs(wanted - chip.memory_gib) > 1:
        changes["memory_gib"] = wanted
    if found := re.search(r"([\d.]+)\s*TB/S", text):
        changes["memory_gbytes_per_s"] = float(found[1]) * 1000
        changes["measured_memory_gbytes_per_s"] = None
    found = re.search(r"\b(\d{3})W\b", text)
    if found and chip.watts and float(found[1]) < 0.9 * chip.watts:
        # Clocks fall with about the 0.4th power of the board's power (P ~ f V², V ~ f).
        slower = (float(found[1]) / chip.watts) ** 0.4
        changes["watts"] = float(found[1])
        changes["measured_tflops"] = {
            dtype: chip.matmul_flops(dtype) * slower / 1e12 for dtype in chip.dtypes
        }
    return replace(chip, **changes) if changes else chip
