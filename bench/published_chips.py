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


# Parts of the catalogue's keys that are not the chip's name, words that mean such a name, and what
# may stand for "8 cards of 200 Gbit/s".
_VARIANT = re.compile(r"-(\d+g|pcie|gcd|die|stack)(?=-|$)")
_ALIASES = ((r"ATLAS (800T|900) A2", "910B"), (r"ARC B60", "ARC PRO B60"))
_CARDS = re.compile(r"(\d+)\s*x\s*(?:[A-Za-z-]+\s*)*(\d{2,3})(?:\s*G(?:b|bps|b/s))?\b")


@functools.lru_cache(maxsize=256)
def pool_of(gpu: str, chips: int) -> tuple[Pool, tuple[str, ...]]:
    """The chips of a cell and their network, and what is uncertain about them."""
    chip, doubts = _chip(gpu)
    family = next((name for name in sorted(_SYSTEMS, key=len)[::-1] if name in gpu.upper()), "")
    gbps, per_node = _SYSTEMS.get(family, (200.0, 8))
    if found := _CARDS.search(gpu):
        gbps = int(found[1]) * int(found[2]) / per_node
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)[^,)]*per (?:GPU|card|chip)", gpu):
        gbps = float(found[1])
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)", gpu):
        gbps = float(found[1]) / per_node
    nodes = max(1, -(-chips // per_node))
    pool = Pool(
        address="published/pool", chip=chip, nodes=nodes, chips_per_node=per_node, nic_gbps=gbps
    )
    return pool, doubts


@functools.cache
def _names() -> tuple[tuple[str, re.Pattern[str], Chip], ...]:
    """What each chip of the catalogue is called, and how that may be written."""
    names = []
    for chip in load_catalogue().values():
        name = _VARIANT.sub("", chip.key).partition("-")[2].upper()
        # Between words, and between letters and digits: nothing, a space or a dash.
        parts = re.findall(r"[A-Z]{2,}(?=\d)|[A-Z]*\d+[A-Z\d]*|[A-Z]+", name)
        names.append((name, re.compile(r"\b" + r" ?".join(parts) + r"\b"), chip))
    return tuple(names)


def _chip(gpu: str) -> tuple[Chip, tuple[str, ...]]:
    """The catalogue's chip whose name the text holds, nearest in memory."""
    text = re.sub(r"[^A-Z0-9./]+", " ", gpu.upper())
    for words, name in _ALIASES:
        text = re.sub(words, name, text)
    memory = re.search(r"(\d+) ?GB\b(?!/)", text)
    wanted = float(memory[1]) if memory else None
    found = [(name, chip) for name, pattern, chip in _names() if pattern.search(text)]
    doubts: tuple[str, ...] = ()
    longest = max((len(name) for name, _ in found), default=0)
    if not found:
        # A family without its member: `910B`.
        said = [word for word in text.split() if re.search(r"[A-Z]", word) and len(word) > 3]
        found = [(n, chip) for n, _, chip in _names() if any(n.startswith(word) for word in said)]
        longest = max((len(name) for name, _ in found), default=0)
        doubts = ("one chip of a family given, not which",)
    elif len({name for name, _ in found if len(name) == longest}) > 1:
        doubts = ("several chips given",)
    fits = [
        (("PCIE" in text) != ("pcie" in chip.key),
         abs(chip.memory_gib - (wanted or chip.memory_gib)), chip)
        for name, chip in found if len(name) == longest
    ]  # fmt: skip
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
    return (replace(chip, **changes) if changes else chip), doubts
