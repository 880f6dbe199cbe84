"""Profile: measured facts of chips and links (`profile.json`).

Where a Profile has a number it replaces the formula. Layer times are keyed by chip key, layer
`signature` and shape; link times are a line α + bytes / β per pair of pools.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, write_json
from pluribus.core.schema import from_table, to_table
from pluribus.spec.operator_table import OperatorTable

PROFILE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer for one micro-batch on one chip (medians over repeats).

    Attributes:
        chip: chip key.
        layer: `Layer.signature`.
        micro_batch: sequences.
        sequence_length: tokens per sequence.
        tensor_parallel: chips that share the layer.
        precision: what the matrices are computed in.
        forward, backward: seconds; backward without recompute.
        spread: relative half-width of the middle half of the repeats.
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
class Profile:
    """Everything measured on one cluster.

    Attributes:
        cluster_digest: the cluster it was measured on.
        operators: tables of single operators, where they were measured or filled in.
        seconds: what measuring took.
    """

    cluster_digest: str
    layers: tuple[LayerTime, ...] = ()
    optimizers: tuple[OptimizerTime, ...] = ()
    links: tuple[LinkTime, ...] = ()
    operators: tuple[OperatorTable, ...] = ()
    seconds: float = 0.0
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version != PROFILE_VERSION:
            raise ConfigError(
                f"profile version {self.version} is not {PROFILE_VERSION}",
                do="Measure again with this version of Pluribus: pluribus profile job.toml.",
            )

    @cached_property
    def _layers(self) -> dict[tuple, LayerTime]:
        return {
            (t.chip, t.layer, t.micro_batch, t.sequence_length, t.tensor_parallel, t.precision): t
            for t in self.layers
        }

    def layer(
        self, chip: str, layer: str, micro_batch: int, sequence_length: int, tp: int, precision: str
    ) -> LayerTime | None:
        """The measured time of a layer, or None."""
        return self._layers.get((chip, layer, micro_batch, sequence_length, tp, precision))

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
