"""The chips we know: one TOML file per vendor in the folder `catalogue`, each with its source."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from pluribus.core.errors import ConfigError, nearest
from pluribus.core.schema import from_table
from pluribus.hardware.chip import Chip


@functools.cache
def load_catalogue() -> Mapping[str, Chip]:
    """Every chip of the catalogue by its key, in order of file and entry.

    A file holds defaults for the vendor (``vendor``, ``device``, ``collective_library``) and a
    table ``[chip.KEY]`` for each chip, whose own keys win over the defaults.
    """
    folder = resources.files("pluribus.hardware") / "catalogue"
    chips: dict[str, Chip] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".toml"):
            continue
        defaults = tomllib.loads(file.read_text(encoding="utf-8"))
        for key, numbers in defaults.pop("chip").items():
            assert key not in chips, f"{file.name} repeats the chip {key}"
            chips[key] = from_table(
                Chip, {**defaults, **numbers, "key": key}, file=file.name, at=f"chip.{key}"
            )
    return MappingProxyType(chips)


def find_chip(key: str, *, where: str) -> Chip:
    """The catalogue's chip of that key.

    Args:
        key: e.g. ``nvidia-a800-80g``.
        where: the file and key that named it, for the message.

    Raises:
        ConfigError: no such chip; offers the nearest key.
    """
    chips = load_catalogue()
    if key not in chips:
        # `ascend-910c` is the start of `ascend-910c-die`, though `ascend-910a` is spelled closer.
        hint = nearest(key, [known for known in chips if known.startswith(key)] or chips)
        raise ConfigError(
            f"unknown chip '{key}'", where=where,
            do=f"{hint[0].upper()}{hint[1:]} Or give the chip as a table with its numbers.",
        )  # fmt: skip
    return chips[key]
