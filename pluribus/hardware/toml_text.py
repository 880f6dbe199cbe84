"""Cluster tables as TOML text: the standard library reads TOML but does not write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def cluster_toml(table: Mapping[str, Any]) -> str:
    """The text of a cluster file.

    Args:
        table: ``{"pool": [...], "link": [...]}`` as `Cluster.to_table` gives it. A pool's chip
            may be a table and becomes ``[pool.chip]``; any other table is written inline.
    """
    blocks = []
    for kind, entries in table.items():
        for entry in entries:
            chip = entry.get("chip") if isinstance(entry.get("chip"), Mapping) else None
            lines = {key: item for key, item in entry.items() if item is not chip}
            blocks.append(f"[[{kind}]]\n{_lines(lines)}")
            # A sub-table ends its parent in TOML, so it comes after the parent's own keys.
            if chip is not None:
                blocks.append(f"[{kind}.chip]\n{_lines(chip)}")
    return "\n".join(blocks)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(item)}\n" for key, item in table.items())


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves bare and TOML forbids.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    # 200.0 and 200 are one value to the reader, so they are one text too.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return repr(value)
