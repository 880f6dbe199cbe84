"""Kinds of links and how close each comes to its nominal bandwidth, by message size.

The constants stand in ``collectives.toml``, each with the measurements it was fitted on;
``bench/fit_collectives.py`` makes them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any

from pluribus.hardware.pool import Pool


@dataclass(frozen=True, slots=True)
class LinkClass:
    """Fitted constants of one kind of link.

    Attributes:
        name: e.g. ``nvlink4``.
        launch_us: from the call to the first step.
        step_us: one step between neighbours (α); 0 takes the latency of the pool.
        peak: share of the nominal bandwidth that large messages reach.
        start: share of that peak that the smallest messages reach.
        half_kib: KiB over a link at which the way from start to peak is half done.
        crowding: members n of one node leave each other a share (2/n)^crowding of a link; 0 for
            a switch, above it where they share the host's bridges.
        mesh: chips that direct links join, without a switch; n of them reach each other over
            (n − 1)/(mesh − 1) of a chip's links. 0 for a switch.
        own_copy: how many times the nominal bandwidth a member copies its own part from input to
            output at, while it moves the others; 0 if that costs nothing.
        in_network_peak: share of the nominal bandwidth while the switch itself adds; 0 if it
            cannot.
        in_network_launch_us: the same as launch_us, for such a sum.
        chips: catalogue keys of the chips joined by it.
        fitted_on: the measurements behind the numbers, as ``source | hardware`` or
            ``source | hardware | counts of chips``.
        note: what else to know about them.
    """

    name: str
    launch_us: float = 0.0
    step_us: float = 0.0
    peak: float = 1.0
    start: float = 1.0
    half_kib: float = 0.0
    crowding: float = 0.0
    mesh: int = 0
    own_copy: float = 0.0
    in_network_peak: float = 0.0
    in_network_launch_us: float = 0.0
    chips: tuple[str, ...] = field(default=(), hash=False)
    fitted_on: tuple[str, ...] = field(default=(), hash=False)
    note: str = field(default="", hash=False)


@dataclass(frozen=True, slots=True)
class Path:
    """A chip's way to its peers: a class of link with a nominal bandwidth.

    Attributes:
        nominal: one chip, one direction, bytes/s.
        step_s: seconds of one step (α).
    """

    link_class: LinkClass
    nominal: float
    step_s: float

    @property
    def launch_s(self) -> float:
        return self.link_class.launch_us * 1e-6

    def bytes_per_s(self, members: int) -> float:
        """What each of ``members`` chips that talk at once reaches with large messages."""
        kind = self.link_class
        rate = kind.peak * self.nominal * (2 / max(members, 2)) ** kind.crowding
        return rate * (members - 1) / (kind.mesh - 1) if 1 < members < kind.mesh else rate

    @property
    def in_network_bytes_per_s(self) -> float:
        return self.link_class.in_network_peak * self.nominal


@dataclass(frozen=True)
class Links:
    """What a group of chips talks over: inside a node, and between nodes."""

    intra: Path
    nic: Path

    # The planner looks up links tens of thousands of times; hashing every constant each time
    # would cost more than the prediction.
    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.intra, self.nic))


@functools.cache
def load_link_classes() -> Mapping[str, LinkClass]:
    """Every class of link by its name."""
    text = resources.files("pluribus.predict") / "collectives.toml"
    return MappingProxyType(link_classes(tomllib.loads(text.read_text(encoding="utf-8"))))


def link_classes(table: Mapping[str, Any]) -> dict[str, LinkClass]:
    """Reads the table ``{name: constants}``."""
    lists = ("chips", "fitted_on")
    return {
        name: LinkClass(
            name=name,
            **{key: tuple(item) if key in lists else item for key, item in numbers.items()},
        )
        for name, numbers in table.items()
    }


def class_of(chip: str, classes: Mapping[str, LinkClass]) -> LinkClass:
    """The class of the links inside a node of chips with this catalogue key."""
    for kind in classes.values():
        if chip in kind.chips:
            return kind
    return classes["accelerator"]


def links_of(pool: Pool) -> Links:
    """The links of a pool.

    A latency that the pool states counts; where it has the default, that of the fitted class
    does. Without a vendor's collective library, links are what the pool says and no less.
    """
    return _links(
        pool.chip.key,
        pool.chip.collective_library,
        pool.intra_bytes_per_s,
        pool.intra_latency_us,
        pool.adapter_bytes_per_s,
        pool.nic_latency_us,
    )


@functools.cache
def _links(
    chip: str, library: str, intra: float, intra_us: float, nic: float, nic_us: float
) -> Links:
    classes = load_link_classes()
    plain, fabric = classes["plain"], classes["nic"]
    inside = class_of(chip, classes)
    if library == "gloo":
        inside = fabric = plain
    return Links(
        Path(inside, intra, _step_s(inside, intra_us, Pool.intra_latency_us)),
        Path(fabric, nic, _step_s(fabric, nic_us, Pool.nic_latency_us)),
    )


def _step_s(kind: LinkClass, stated_us: float, default_us: float) -> float:
    fitted = kind.step_us and stated_us == default_us
    return (kind.step_us if fitted else stated_us) * 1e-6
