"""Seconds of an operator from the tables of a Profile: measured where the shape is in the table,
between the points by regression of what a formula leaves over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.model.operator import Operator
from pluribus.predict.gemm import gemm_constants, gemm_seconds
from pluribus.predict.operators import FLASH_BACKWARD, LAUNCH_SECONDS, Work, flash_behind
from pluribus.predict.regression import Estimate, LocalRegression
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import Profile

# Half-width of the interval around a layer made of tabled operators: held-out shapes are 3 to
# 9 % off (bench/operators.py), and what a step sustains varies by as much between programs.
TABLE_SPREAD = 0.12

# What a table says of the other 16-bit type where it has no row of its own: chips run both alike.
_TWIN = {"bf16": "fp16", "fp16": "bf16"}

# How far apart shapes are, per doubling of each dimension; 1 where nothing is listed. Batch and
# heads count less because kernels treat them alike; kernels are written per head width; experts
# change their kernel with the rows; a sum over other members is another curve. Best of three or
# four sets each on the tables of A100, H100, B200 and Arc B60 in aiconfigurator-core 0.12.0, a
# fifth of the widths held out.
_WEIGHTS = {
    "all_reduce": (6, 1),
    "all_gather": (6, 1),
    "reduce_scatter": (6, 1),
    "all_to_all": (6, 1),
    "attention": (0.5, 0.5, 0.25, 2, 1),
    "decode_attention": (0.5, 0.5, 1, 2, 1),
    "experts": (2, 1, 1, 1),
}


def operator_times(profile: Profile | None, chip: Chip) -> OperatorTimes | None:
    """The tables a profile has of a chip, ready for look-ups; None where it has none."""
    tables = profile.tables(chip.key) if profile else ()
    return _times(tables, chip) if tables else None


@functools.lru_cache(maxsize=256)
def _times(tables: tuple[OperatorTable, ...], chip: Chip) -> OperatorTimes:
    return OperatorTimes(tables, chip)


class OperatorTimes:
    """The operator tables of one chip.

    Args:
        tables: all of this chip.
        chip: gives the formula between the points, and the peak no estimate passes.
    """

    def __init__(self, tables: tuple[OperatorTable, ...], chip: Chip) -> None:
        self.chip = chip
        self._tables = {(t.operator, t.precision): Table(t, chip) for t in tables if t.seconds}

    def table(self, operator: str, precision: str = "") -> Table | None:
        """The table of an operator; bf16 and fp16 stand in for one another."""
        found = self._tables.get((operator, precision))
        return found or self._tables.get((operator, _TWIN.get(precision, precision)))

    def price(self, operator: str, precision: str, *shape: int) -> float:
        """Seconds of one operator: from its table, or by the formula where there is none."""
        table = self.table(operator, precision)
        if table is None:
            return _FORMULAS[operator](self.chip, precision, *shape)
        return table.seconds(*shape)

    def collective(self, operator: str, members: int, num_bytes: float) -> float | None:
        """Seconds of a collective inside a node; None where no table has one of as many chips."""
        table = self.table(operator)
        if table is None or members > table.largest[0]:
            return None
        return table.seconds(members, max(1, round(num_bytes)))

    def work(
        self,
        operator: Operator,
        precision: str,
        micro_batch: int,
        software: Software = PLURIBUS,
    ) -> tuple[Work, Work, float] | None:
        """As `operator_work`, from the tables; None where they do not have the operator.

        Args:
            micro_batch: sequences, which the operator of an attention does not name.
        """
        m, n, k, count = operator.m, operator.n, operator.k, operator.count
        kept = gemm_constants(self.chip.key).sustained if self.chip.compute_units else 1.0
        if operator.kind == "gemm" and (table := self.table("gemm", precision)):
            # Matrices that share their input are one wide product, forward and backward.
            once = table.seconds(m, n * count, k) / kept
            data = table.seconds(m, k, n * count) / kept
            weight = table.seconds(k, n * count, m) / kept
            return Work(matmul=once), Work(matmul=data + weight), weight
        if operator.kind == "grouped_gemm" and (table := self.table("experts", precision)):
            hidden, width = (k, n // 2) if "gate_up" in operator.name else (n, k)
            whole = table.seconds(m * count, hidden, width, count)
            once = whole * operator.flops / (6 * m * count * hidden * width) / kept
            return Work(experts=once), Work(experts=2 * once), once
        wide = "bf16" if precision == "fp8" else precision
        if operator.kind == "attention" and (table := self.table("attention", wide)):
            heads, kv_heads = count // micro_batch, max(1, operator.kv_count // micro_batch)
            whole = table.seconds(micro_batch, heads, kv_heads, k, n)
            # Windows, context parallelism and narrower values leave a part of the products.
            once = whole * operator.flops / (2 * count * n * n * k) / kept
            once *= flash_behind(software, self.chip)
            return Work(attention=once), Work(attention=once * FLASH_BACKWARD), 0.0
        if operator.kind == "elementwise" and (table := self.table("elementwise", wide)):
            once = table.seconds(max(1, round(operator.bytes)))
            return Work(memory=once), Work(memory=1.5 * once), 0.0
        return None


class Table:
    """One operator of one chip: measured rows, and what lies between them.

    Attributes:
        largest: of each number of the shape, the largest that was measured.
    """

    def __init__(self, table: OperatorTable, chip: Chip) -> None:
        self._rows = table.rows
        self._formula = functools.partial(_FORMULAS[table.operator], chip, table.precision)
        self._weights = np.array(_WEIGHTS.get(table.operator, (1,) * len(table.shape)))
        shapes = np.array(list(self._rows), dtype=float)
        rest = [math.log(s / self._formula(*shape)) for shape, s in self._rows.items()]
        self._regression = LocalRegression(np.log2(shapes) * self._weights, np.array(rest))
        self._spread = table.spread
        self.largest = tuple(max(column) for column in zip(*self._rows, strict=True))
        self._floor = _floor(table, chip)
        self._known: dict[tuple[int, ...], Estimate] = {}

    def seconds(self, *shape: int) -> float:
        """Seconds at a shape."""
        return self.estimate(shape).value

    def estimate(self, shape: tuple[int, ...]) -> Estimate:
        """Seconds at a shape and their relative standard deviation."""
        if shape not in self._known:
            measured = self._rows.get(shape)
            self._known[shape] = (
                Estimate(measured, self._spread) if measured else self._between(shape)
            )
        return self._known[shape]

    def near(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The measured shapes that estimates at a shape and close to it are made from."""
        rows = list(self._rows)
        return [rows[i] for i in self._regression.nearest(self._place(shape))]

    def _place(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.log2(np.maximum(shape, 1)) * self._weights

    def _between(self, shape: tuple[int, ...]) -> Estimate:
        rest = self._regression(self._place(shape))
        seconds = self._formula(*shape) * math.exp(rest.value)
        return Estimate(max(seconds, self._floor(*shape)), math.hypot(rest.sigma, self._spread))


def _gemm(chip: Chip, precision: str, m: int, n: int, k: int) -> float:
    if chip.compute_units and chip.supports(precision):
        return gemm_seconds(m, n, k, 1, chip, precision)
    moved = DTYPE_BYTES[precision] * (m * k + k * n + m * n)
    return max(_arithmetic(chip, precision, _gemm_flops(m, n, k)), _traffic(chip, moved)) + _LAUNCH


def _attention(
    chip: Chip, precision: str, batch: int, heads: int, kv_heads: int, head_dim: int, tokens: int
) -> float:
    flops = 2.0 * batch * heads * head_dim * tokens * tokens
    flops /= gemm_constants(chip.key).flash(tokens)
    moved = 2 * DTYPE_BYTES[precision] * batch * tokens * (heads + kv_heads) * head_dim
    return _arithmetic(chip, precision, flops) + _traffic(chip, moved) + _LAUNCH


def _decode_attention(
    chip: Chip, precision: str, batch: int, heads: int, kv_heads: int, head_dim: int, context: int
) -> float:
    flops = 4.0 * batch * heads * head_dim * context
    # A latent cache is read once for keys and values.
    reads = 1 if kv_heads == 1 and head_dim > 512 else 2
    moved = reads * DTYPE_BYTES[precision] * batch * context * kv_heads * head_dim
    return _arithmetic(chip, precision, flops) + _traffic(chip, moved) + _LAUNCH


def _experts(
    chip: Chip, precision: str, rows: int, hidden: int, intermediate: int, experts: int
) -> float:
    flops = 6.0 * rows * hidden * intermediate
    weights = DTYPE_BYTES[precision] * min(experts, rows) * 3 * hidden * intermediate
    states = 2 * rows * (2 * hidden + 3 * intermediate)
    arithmetic = _arithmetic(chip, precision, flops)
    return max(arithmetic, _traffic(chip, weights)) + _traffic(chip, states) + _LAUNCH


def _elementwise(chip: Chip, precision: str, num_bytes: int) -> float:
    return _traffic(chip, num_bytes) + _LAUNCH


def _collective(steps: int, chip: Chip, precision: str, members: int, num_bytes: int) -> float:
    # A ring over the chip's own links: 2 (n − 1) steps of n-th parts for a sum, half for others.
    rate = (chip.link_gbytes_per_s or _UNKNOWN_LINK_GBYTES_PER_S) * 1e9
    return steps * (members - 1) * (_LAUNCH / 2 + num_bytes / members / rate)


_LAUNCH = LAUNCH_SECONDS
_UNKNOWN_LINK_GBYTES_PER_S = 16.0  # PCIe 3.0 x16; only the shape of the formula counts

_FORMULAS: dict[str, Callable[..., float]] = {
    "gemm": _gemm,
    "attention": _attention,
    "decode_attention": _decode_attention,
    "experts": _experts,
    "elementwise": _elementwise,
    "all_reduce": functools.partial(_collective, 2),
    "all_gather": functools.partial(_collective, 1),
    "reduce_scatter": functools.partial(_collective, 1),
    "all_to_all": functools.partial(_collective, 1),
}


def _gemm_flops(m: int, n: int, k: int) -> float:
    return 2.0 * m * n * k


def _arithmetic(chip: Chip, precision: str, flops: float) -> float:
    # A chip may store a type (an 8-bit cache) that it cannot multiply.
    dtype = precision if chip.supports(precision) else chip.dtypes[0]
    return flops / chip.matmul_flops(dtype)


def _traffic(chip: Chip, num_bytes: float) -> float:
    return num_bytes / chip.memory_bytes_per_s


def _floor(table: OperatorTable, chip: Chip) -> Callable[..., float]:
    """Seconds a product cannot undercut: the chip's peak, or what the table shows above it."""
    if table.operator != "gemm":
        return lambda *shape: 0.0
    best = max(_gemm_flops(*shape) / seconds for shape, seconds in table.rows.items())
    rate = max(best, 1e12 * chip.peak_tflops.get(table.precision, 0.0))
    return lambda *shape: _gemm_flops(*shape) / rate
