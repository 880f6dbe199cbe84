"""From the devices torch lists to pools: recognising chips, grouping like with like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.core.units import GIB
from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.chip import Chip

# A device reports up to 2 % less than its datasheet, or 8 % more where "80 GB" are decimal.
_MEMORY_TOLERANCE = 0.1
# Words that tell a slower build of the same part.
_VARIANTS = frozenset({"pcie", "nvl", "laptop", "mig", "d"})
_SIZE = re.compile(r"\d+gi?b?|sxm\d*|hbm\d*\w?")

# Variables that show a process only some devices of a kind.
_VISIBLE = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "musa": "MUSA_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
}


@dataclass(frozen=True)
class Accelerator:
    """One device as torch lists it; ``uuid`` is empty where torch has none."""

    device: str
    name: str
    memory_bytes: int
    uuid: str = ""


@dataclass(frozen=True)
class AcceleratorGroup:
    """Like devices of this machine.

    Attributes:
        known: their chip, where the catalogue has it.
        environment: shows a process these devices and no others; empty where all are alike.
    """

    label: str
    first: Accelerator
    count: int
    known: Chip | None
    environment: dict[str, str]


def group_accelerators(found: Sequence[Accelerator]) -> list[AcceleratorGroup]:
    """One group per kind of device, in the order torch lists them."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for index, device in enumerate(found):
        kinds.setdefault((device.device, device.name), []).append(index)
    groups = []
    for indices in kinds.values():
        first = found[indices[0]]
        names = [f"GPU-{found[i].uuid}" if found[i].uuid else str(i) for i in indices]
        environment = {_VISIBLE[first.device]: ",".join(names)} if len(kinds) > 1 else {}
        known = match_chip(first)
        label = known.key if known else re.sub(r"[^a-z0-9]+", "-", first.name.lower()).strip("-")
        groups.append(AcceleratorGroup(label, first, len(indices), known, environment))
    return groups


def match_chip(device: Accelerator) -> Chip | None:
    """The catalogue's chip for a device: same part number and build, nearest memory.

    Returns:
        None when no chip has the part number, or none of those has about the memory.
    """
    name = device.name.lower()
    gib = device.memory_bytes / GIB
    matches = [
        chip
        for chip in load_catalogue().values()
        if chip.device == device.device
        and _part_numbers(chip)
        and all(_mentions(name, part) for part in _part_numbers(chip))
        and _VARIANTS & _words(name) == _VARIANTS & _words(chip.name)
        and abs(gib - chip.memory_gib) <= _MEMORY_TOLERANCE * chip.memory_gib
    ]
    return min(matches, key=lambda chip: abs(gib - chip.memory_gib), default=None)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _part_numbers(chip: Chip) -> set[str]:
    words = _words(chip.name.partition("(")[0])
    return {w for w in words if any(c.isdigit() for c in w) and not _SIZE.fullmatch(w)}


def _mentions(name: str, part: str) -> bool:
    # "Ascend910B3" mentions 910b3, but "GB200" is no B200 and "H200" no H20.
    before = "[0-9]" if part[0].isdigit() else "[a-z0-9]"
    return re.search(f"(?<!{before}){part}(?![a-z0-9])", name) is not None
