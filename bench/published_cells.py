"""Reads the cells of published runs: numbers with units and separators, words for degrees."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path

_NUMBER = re.compile(r"\d+(\.\d+)?([eE][-+]?\d+)?")
_THOUSANDS = {"k": 1024, "m": 1024**2}
_TIMES = ((r"ms\b|milli", 1e-3), (r"min", 60.0), (r"h\b|hour", 3600.0))
_MIB = re.compile(r"\d\s*Mi?B\b", re.I)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows as strings, with the name of their file; cells beyond the header under "".

    Encodings with a mark at their start, commas, semicolons and tabs are understood.
    """
    raw = Path(path).read_bytes()
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = raw.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    name = Path(path).stem
    return [
        {**{(key or "").strip().lower(): cell for key, cell in row.items()}, "file": name}
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    ]


def number(row: Mapping[str, str], key: str) -> float | None:
    """The first positive number of a cell such as ``3(FSDP2)`` or ``1,024``."""
    found = _NUMBER.search((row.get(key) or "").replace(",", ""))
    value = float(found.group()) if found else 0.0
    return value if 0 < value < math.inf else None


def whole(row: Mapping[str, str], key: str, least: int = 1) -> int | None:
    """The same as a whole number, ``4k`` being 4,096; with ``least=0`` zero counts as given."""
    value = number(row, key)
    if value is None:
        return 0 if least == 0 and re.match(r"\s*0", row.get(key) or "") else None
    unit = re.match(r"\s*\d+(?:\.\d+)?\s*([kmKM])\b", row.get(key) or "")
    value *= _THOUSANDS[unit[1].lower()] if unit else 1
    return int(value) if value >= 1 else None


def step_seconds(row: Mapping[str, str], flags: list[str]) -> float | None:
    """Of one step; a cell may name another unit."""
    seconds = number(row, "iter_time_s")
    for unit, times in _TIMES:
        if seconds and re.search(rf"\d\s*({unit})", row.get("iter_time_s") or "", re.I):
            flags.append("time given in another unit than seconds")
            return seconds * times
    return seconds


def peak_gib(row: Mapping[str, str], flags: list[str]) -> float | None:
    """Of a chip, in GiB."""
    peak = number(row, "peak_mem_gb")
    if peak and _MIB.search(row.get("peak_mem_gb") or ""):
        flags.append("peak given in MiB")
        return peak / 1024
    return peak


def zero_stage(row: Mapping[str, str]) -> int | None:
    """The ZeRO stage of a cell such as ``3(FSDP2)``, ``FSDP`` or ``none``; None if not given."""
    cell = row.get("zero") or ""
    stage = whole(row, "zero", least=0)
    if stage is not None:
        return min(stage, 3)
    if re.search(r"\b(fsdp|hsdp|fully)", cell, re.I):
        return 3
    return 0 if re.match(r"\s*(none|no|off|false)\b", cell, re.I) else None


def recompute_kind(row: Mapping[str, str]) -> str | None:
    """What a cell says is run again: a kind, yes or no, or Megatron's ways to do it in full."""
    cell = (row.get("recompute") or "").strip()
    if found := re.match(r"(none|selective|full)", cell, re.I):
        return found[1].lower()
    if re.match(r"(no|off|false|0)\b", cell, re.I):
        return "none"
    return "full" if re.match(r"(yes|on|true|1|uniform|block|all)\b", cell, re.I) else None
