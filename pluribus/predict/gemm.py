"""Seconds of one matrix product by its shape: tiles, waves of tiles, alignment, memory traffic.

A library cuts the (m, n) result into tiles, one per compute unit at a time. The last tile of a
row or column is computed whole, and the last wave of tiles takes as long as a full one (NVIDIA,
Matrix Multiplication Background User's Guide, "Tile quantization" and "Wave quantization"), so
a shape that just misses is slow. The fastest of the candidate tiles is what a tuned library
would pick.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from pluribus.core.schema import from_table
from pluribus.hardware.chip import Chip


@dataclass(frozen=True, kw_only=True)
class GemmConstants:
    """What the model of a matrix product was fitted to; values and origin are in gemm.toml.

    Attributes:
        fitted_on: the measurements.
        chips: beginnings of the chip keys they hold for.
        ramp: elements of the summed dimension that a tile's start and end cost.
        split: most parts the summed dimension is cut into when there are few tiles.
        efficiency: share of the chip's best measured matmul that a full wave reaches.
        memory_efficiency: share of the memory bandwidth that operands stream at.
        launch_s: of one kernel that follows another, seconds.
        sustained: share of its benchmarked rate that a product keeps inside a training step.
        sustained_8bit: the same in 8 bits, whose rates in the catalogue are sustained ones.
        flash_peak: share of the chip's best measured matmul that the newest flash kernel reaches on
            a sequence without end.
        flash_half: tokens of a sequence on which it reaches half of that.
        flash_generation: of this kernel: FlashAttention-2 on A100, -3 on H100.
        tiles: ``rows x columns`` of each candidate and its rate relative to 256x128.
        alignment: a divisor of row lengths, in elements, and the rate that is left.
    """

    fitted_on: str
    chips: tuple[str, ...]
    ramp: float
    split: int
    efficiency: float
    memory_efficiency: float
    launch_s: float
    sustained: float
    sustained_8bit: float
    flash_peak: float
    flash_half: float
    flash_generation: int
    tiles: dict[str, float]
    alignment: dict[str, float]

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, int, float], ...]:
        """(rows, columns, efficiency) of every tile."""
        return tuple((*map(int, name.split("x")), e) for name, e in self.tiles.items())

    def kept(self, precision: str) -> float:
        """The share of the benchmarked rate that a training step keeps."""
        return self.sustained_8bit if precision == "fp8" else self.sustained

    def flash(self, tokens: float) -> float:
        """The share of the chip's best matmul that the newest flash kernel reaches."""
        return self.flash_peak * tokens / (tokens + self.flash_half)

    def aligned(self, width: int) -> float:
        """The share of its rate a product keeps whose rows are ``width`` elements long."""
        return next(share for unit, share in self.alignment.items() if width % int(unit) == 0)


@functools.cache
def _families() -> Mapping[str, GemmConstants]:
    file = resources.files("pluribus.predict") / "gemm.toml"
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    return {
        name: from_table(GemmConstants, table, file="gemm.toml", at=name)
        for name, table in tables.items()
    }


@functools.cache
def gemm_constants(chip_key: str) -> GemmConstants:
    """The constants of a chip's generation, or those of all measured ones together."""
    for constants in _families().values():
        if chip_key.startswith(constants.chips):
            return constants
    return _families()["default"]


def gemm_seconds(m: int, n: int, k: int, count: int, chip: Chip, precision: str) -> float:
    """``count`` independent products of (m, k) with (k, n), run as one batch.

    Args:
        m, n, k: rows, columns and summed dimension.
        count: products in the batch.
        chip: one whose `compute_units` are known.
        precision: dtype of the operands.

    Raises:
        PlanError: the chip has no arithmetic of this precision.
    """
    assert chip.compute_units, f"{chip.key} has no known compute units"
    return _seconds(
        m, n, k, count, chip.key, chip.matmul_flops(precision), chip.memory_bytes_per_s,
        chip.compute_units, 1 if precision == "fp8" else 4 if precision == "fp32" else 2,
    )  # fmt: skip


@functools.lru_cache(maxsize=65536)
def _seconds(
    m: int, n: int, k: int, count: int, key: str, flops: float, bytes_per_s: float, units: int,
    element: int,
) -> float:  # fmt: skip
    constants = gemm_constants(key)
    per_unit = flops * constants.efficiency / units
    best = float("inf")
    for rows, columns, efficiency in constants.shapes:
        tiles = -(-m // rows) * -(-n // columns) * count
        parts = max(1, min(constants.split, units // tiles, k // 512))
        waves = -(-tiles * parts // units)
        work = 2.0 * rows * columns * (k / parts + constants.ramp)
        best = min(best, waves * work / (per_unit * efficiency))
    best /= min(constants.aligned(n), constants.aligned(k))
    moved = element * count * (m * k + k * n + m * n)
    memory = moved / (bytes_per_s * constants.memory_efficiency)
    return max(best, memory) + constants.launch_s
