"""Profile: measured facts of chips and links (`profile.json`).

Where a Profile has a number it replaces the formula. A layer is named by its `signature`, or by
its index in `Model.layers` where it was measured elsewhere and only its place is known. A link
is a line α + bytes / β per pair of pools, or a curve over sizes per pair of places.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, write_json
from pluribus.core.schema import from_table, to_table
from pluribus.spec.operator_table import OperatorTable

PROFILE_VERSION = 2
_READABLE = (1, 2)  # version 1 had no updates per layer, sizes or curves; the rest is the same

_RANGE = re.compile(r"#(\d+)(?:-(\d+))?")
MEGABYTE = 1e6


def indices(layer: str) -> range | None:
    """The layers that ``#3`` or ``#2-24`` (both ends included) names; None for a signature."""
    match = _RANGE.fullmatch(layer)
    if match is None:
        return None
    return range(int(match[1]), int(match[2] or match[1]) + 1)


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer for one micro-batch on one chip (medians over repeats).

    Attributes:
        chip: chip key.
        layer: `Layer.signature`, or indices: ``#3``, ``#2-24``.
        micro_batch: sequences.
        sequence_length: tokens per sequence.
        tensor_parallel: chips that share the layer.
        precision: what the matrices are computed in.
        forward, backward: seconds; backward without recompute.
        spread: relative half-width of the middle half of the repeats.
        update: seconds of the optimiser for this layer, once per step; None where `OptimizerTime`
            or the formula says it.
    """

    chip: str
    layer: str
    micro_batch: int
    sequence_length: int
    tensor_parallel: int = 1
    precision: str
    forward: float
    backward: float
    spread: float
    update: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What one rank holds of one layer.

    Attributes:
        layer: `Layer.signature`, or indices: ``#3``, ``#2-24``.
        parameters: of one rank.
        kept_bytes: from forward to backward of one micro-batch, without recompute.
        chip: chip key where it differs between chips; empty holds for every chip.
    """

    layer: str
    micro_batch: int
    sequence_length: int
    tensor_parallel: int = 1
    precision: str
    parameters: int
    kept_bytes: float
    chip: str = ""


@dataclass(frozen=True, kw_only=True)
class OptimizerTime:
    """Seconds of one optimiser update per parameter on one chip."""

    chip: str
    seconds_per_parameter: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class LinkTime:
    """A measured link between two pools: seconds(bytes) = latency_s + bytes / bytes_per_s.

    Attributes:
        between: pool addresses.
        operation: point to point, or the all-reduce of one gradient buffer over the two pools.
    """

    between: tuple[str, str]
    operation: str
    latency_s: float
    bytes_per_s: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class LinkCurve:
    """Bandwidth by size between two places, or between the chips of one node.

    A place is a pool (``site/pool``), a kind of chip at a site (``site/CHIP``) or a kind of chip
    anywhere (``CHIP``); the first of these that a profile has counts.

    Attributes:
        between: the two places; the same twice for nodes of one kind.
        chips: chips of each side that send at once; the curve is what they reach together.
        inside: whether it is the link between chips of one node.
        latency_s: added to every message.
        points: (bytes, bytes/s) pairs of ascending size. Rates between them are linear in the
            logarithm of the size; below the first a message takes as long as the first does,
            above the last the rate stays.
        polynomial: instead of points: 1e9 bytes/s as a polynomial in log2 of the size in 1e6
            bytes, highest power first (a form that Strati et al. 2025, "Sailor", publish). Held
            below 1e6 bytes like points, and above the size where it is highest.
        limit_bytes_per_s: never more than this.
    """

    between: tuple[str, str]
    chips: int = 1
    inside: bool = False
    latency_s: float = 0.0
    points: tuple[tuple[float, float], ...] = ()
    polynomial: tuple[float, ...] = ()
    limit_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        if bool(self.points) == bool(self.polynomial):
            raise ConfigError(
                f"the link of {' and '.join(self.between)} needs points or a polynomial",
                do="Give one of the two.",
            )
        sizes = [size for size, _ in self.points]
        if sizes != sorted(set(sizes)):
            raise ConfigError(
                f"the points of the link of {' and '.join(self.between)} do not ascend",
                do="Sort them by size, each size once.",
            )
        numbers = [number for point in self.points for number in point]
        rate = self.limit_bytes_per_s
        if rate is not None:
            numbers.append(rate)
        if not all(0 < number < math.inf for number in numbers) or not self._rate(MEGABYTE) > 0:
            raise ConfigError(
                f"the link of {' and '.join(self.between)} has a size or rate that is not above "
                "zero",
                do="Mend the curve; sizes are bytes and rates bytes per second.",
            )

    def bytes_per_s(self, num_bytes: float) -> float:
        """What all `chips` reach together with messages of this size."""
        first = self.points[0][0] if self.points else MEGABYTE
        rate = self._rate(max(num_bytes, first)) * min(1.0, num_bytes / first)
        return min(rate, self.limit_bytes_per_s or math.inf)

    def _rate(self, num_bytes: float) -> float:
        x = math.log2(num_bytes / MEGABYTE)
        if self.polynomial:
            return self._highest_until(x) * 1e9
        size, rate = self.points[0]
        for next_size, next_rate in self.points[1:]:
            if num_bytes <= next_size:
                part = math.log2(num_bytes / size) / math.log2(next_size / size)
                return rate + (next_rate - rate) * max(0.0, part)
            size, rate = next_size, next_rate
        return rate

    def _highest_until(self, x: float) -> float:
        """The polynomial's highest value on [0, x]: a fitted curve turns down beyond its data."""
        steps = range(int(x) + 1) if x < 64 else range(64)
        return max(_horner(self.polynomial, at) for at in (*steps, min(x, 64.0)))


def _horner(coefficients: tuple[float, ...], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


Grid = Mapping[int, Mapping[int, Any]]  # tensor-parallel degree -> micro-batch -> measurement


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measurements, of one cluster or of kinds of chips wherever they stand.

    Attributes:
        cluster_digest: the cluster it was measured on; empty if it was imported, and then it
            holds for every cluster of these chips.
        source: who measured, if it was imported.
        operators: tables of single operators, where they were measured or filled in.
        seconds: what measuring took.
    """

    cluster_digest: str = ""
    layers: tuple[LayerTime, ...] = ()
    sizes: tuple[LayerSize, ...] = ()
    optimizers: tuple[OptimizerTime, ...] = ()
    links: tuple[LinkTime, ...] = ()
    operators: tuple[OperatorTable, ...] = ()
    curves: tuple[LinkCurve, ...] = ()
    source: str = ""
    seconds: float = 0.0
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version not in _READABLE:
            raise ConfigError(
                f"profile version {self.version} is not {PROFILE_VERSION}",
                do="Measure again with this version of Pluribus: pluribus profile job.toml.",
            )

    @cached_property
    def _layers(self) -> dict[tuple, dict[int, dict[int, LayerTime]]]:
        return _grids(self.layers)

    @cached_property
    def _sizes(self) -> dict[tuple, dict[int, dict[int, LayerSize]]]:
        return _grids(self.sizes)

    @cached_property
    def num_layers(self) -> int:
        """Layers of the model it was measured on, as far as layers are named by index; else 0."""
        ranges = [indices(row.layer) for row in (*self.layers, *self.sizes)]
        return max((places[-1] + 1 for places in ranges if places), default=0)

    def layer(
        self, chip: str, layer: str, micro_batch: int, sequence_length: int, tp: int, precision: str
    ) -> LayerTime | None:
        """The measured time of a layer in exactly this shape, or None."""
        grid = self.layer_grid(chip, layer, sequence_length, precision)
        return grid.get(tp, {}).get(micro_batch)

    def layer_grid(self, chip: str, layer: str, sequence_length: int, precision: str) -> Grid:
        """Every measured time of a layer: degree -> micro-batch -> `LayerTime`.

        Args:
            layer: a signature, or one index such as ``#3``.
        """
        return self._layers.get((chip, layer, sequence_length, precision), {})

    def size_grid(self, chip: str, layer: str, sequence_length: int, precision: str) -> Grid:
        """The same of sizes; those of this chip, else those that hold for every chip."""
        key = (layer, sequence_length, precision)
        return self._sizes.get((chip, *key)) or self._sizes.get(("", *key), {})

    def curve(
        self, places_a: tuple[str, ...], places_b: tuple[str, ...], inside: bool = False
    ) -> tuple[LinkCurve, ...]:
        """The curves between two places by number of chips, fewest first; () if there are none.

        Args:
            places_a: names of one place, the most particular first; see `LinkCurve`.
            places_b: of the other.
        """
        for a in places_a:
            for b in places_b:
                found = self._curves.get((frozenset((a, b)), inside))
                if found:
                    return found
        return ()

    @cached_property
    def _curves(self) -> dict[tuple[frozenset[str], bool], tuple[LinkCurve, ...]]:
        found: dict[tuple[frozenset[str], bool], list[LinkCurve]] = {}
        for curve in self.curves:
            found.setdefault((frozenset(curve.between), curve.inside), []).append(curve)
        return {key: tuple(sorted(c, key=lambda curve: curve.chips)) for key, c in found.items()}

    @cached_property
    def _near(self) -> dict[tuple[str, str, str], tuple[LayerTime, ...]]:
        near: dict[tuple[str, str, str], tuple[LayerTime, ...]] = {}
        for time in self.layers:
            key = time.chip, time.layer, time.precision
            near[key] = (*near.get(key, ()), time)
        return near

    def layers_like(self, chip: str, layer: str, precision: str) -> tuple[LayerTime, ...]:
        """The measured times of a layer at any micro-batch size, sequence length and tp."""
        return self._near.get((chip, layer, precision), ())

    @cached_property
    def _tables(self) -> dict[str, tuple[OperatorTable, ...]]:
        chips = dict.fromkeys(table.chip for table in self.operators)
        return {chip: tuple(t for t in self.operators if t.chip == chip) for chip in chips}

    def tables(self, chip: str) -> tuple[OperatorTable, ...]:
        """The operator tables of one chip kind."""
        return self._tables.get(chip, ())

    def link(self, pool_a: str, pool_b: str, operation: str) -> LinkTime | None:
        """The measured link between two pools, in either order, or None."""
        for time in self.links:
            if time.operation == operation and set(time.between) == {pool_a, pool_b}:
                return time
        return None

    def optimizer(self, chip: str) -> OptimizerTime | None:
        return next((t for t in self.optimizers if t.chip == chip), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        write_json(path, to_table(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        return from_table(cls, read_json(path), file=str(path))


def _grids(rows: tuple[Any, ...]) -> dict[tuple, dict[int, dict[int, Any]]]:
    """(chip, layer, sequence length, precision) -> degree -> micro-batch -> row."""
    grids: dict[tuple, dict[int, dict[int, Any]]] = {}
    for row in rows:
        places = indices(row.layer)
        for layer in [f"#{i}" for i in places] if places is not None else [row.layer]:
            key = (row.chip, layer, row.sequence_length, row.precision)
            grids.setdefault(key, {}).setdefault(row.tensor_parallel, {})[row.micro_batch] = row
    return grids
