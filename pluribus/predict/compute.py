"""Seconds of a layer on a chip: measured where a Profile has it, otherwise the sum of its
operators, each by its shape (`operators.py`)."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer
from pluribus.predict.algorithms import ALL_REDUCE, GroupShape
from pluribus.predict.calibration import IDENTITY, Calibration
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.grid import BEYOND_SPREAD, read_grid, read_share
from pluribus.predict.link_classes import links_of
from pluribus.predict.operators import Work, operator_work
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.profile import Grid, Profile

# Half-width of the interval around a roofline time; rooflines with one efficiency per chip are
# 31–45 % off on published GEMM tables, and sums of many operators about half of that.
ROOFLINE_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one micro-batch through some layers, and how uncertain they are.

    Attributes:
        backward: with the recomputed forward, where the stage recomputes.
        spread: relative half-width.
        weight_gradient: the part of backward that makes the gradients of weights, which a
            zero-bubble schedule can do later.
    """

    forward: float
    backward: float
    spread: float
    weight_gradient: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


def stage_time(
    layers: Sequence[Layer],
    pool: Pool,
    micro_batch: int,
    sequence_length: int,
    *,
    tp: int,
    recompute: str,
    precision: str,
    profile: Profile | None,
    calibration: Calibration = IDENTITY,
) -> StageTime:
    """Seconds of one micro-batch through a run of layers on chips of one pool.

    Raises:
        ConfigError: the chip has no arithmetic of this precision.
    """
    forward = backward = weighted = weights = 0.0
    for layer in layers:
        time = layer_time(
            layer, pool, micro_batch, sequence_length, tp, precision, profile, calibration
        )
        # Recompute keeps the head's input anyway: its forward is not run twice.
        again = time.forward if recompute == "full" and layer.kind in ("dense", "moe") else 0.0
        forward += time.forward
        backward += time.backward + again
        weighted += time.spread * time.total
        weights += time.weight_gradient
    total = forward + backward
    return StageTime(forward, backward, weighted / total if total else 0.0, weights)


def layer_time(
    layer: Layer,
    pool: Pool,
    micro_batch: int,
    sequence_length: int,
    tp: int,
    precision: str,
    profile: Profile | None,
    calibration: Calibration = IDENTITY,
) -> StageTime:
    """Seconds of one layer for one micro-batch, with its tensor-parallel sums.

    Measured if the profile has the layer on the chip: at this shape, or read between and beyond
    the shapes it has; a lone one grows to others as the formula does.
    """
    grid = (
        profile.layer_grid(pool.chip.key, layer.signature, sequence_length, precision)
        if profile
        else {}
    )
    measured = measured_time(grid, tp, micro_batch)
    if measured:
        share = _weight_gradient_share(layer, micro_batch, sequence_length, tp)
        return replace(measured, weight_gradient=measured.backward * share)
    formula = _formula_time(layer, pool, micro_batch, sequence_length, tp, precision, calibration)
    if not grid:
        return formula
    degree = min(grid, key=lambda known: abs(math.log(known / tp)))
    size = min(grid[degree], key=lambda known: abs(math.log(known / micro_batch)))
    at, point = (size, sequence_length, degree), grid[degree][size]
    anchor = _formula_time(layer, pool, *at, precision, calibration)
    ahead = point.forward / anchor.forward if anchor.forward else 1.0
    back = point.backward / anchor.backward if anchor.backward else 1.0
    return StageTime(
        formula.forward * ahead, formula.backward * back, point.spread + BEYOND_SPREAD,
        formula.weight_gradient * back,
    )  # fmt: skip


def _formula_time(
    layer: Layer,
    pool: Pool,
    micro_batch: int,
    sequence_length: int,
    tp: int,
    precision: str,
    calibration: Calibration,
) -> StageTime:
    """The sum of a layer's operators and its tensor-parallel sums."""
    ahead, back, weights = layer_work(
        layer, pool.chip, (micro_batch, sequence_length, tp), precision
    )
    forward, backward = ahead.seconds(calibration), back.seconds(calibration)
    if tp > 1:
        element = DTYPE_BYTES[precision]
        sums = _tensor_parallel_seconds(layer, pool, micro_batch, sequence_length, tp, element)
        forward += sums * calibration.intra
        backward += sums * calibration.intra
    spread = calibration.spread or ROOFLINE_SPREAD
    return StageTime(forward, backward, spread, weights * calibration.matmul)


def measured_time(grid: Grid, tp: int, micro_batch: int) -> StageTime | None:
    """Measured seconds at a shape, or read between and beyond the shapes of the grid.

    Returns:
        None where nothing was measured, or one lone point elsewhere.
    """
    point = grid.get(tp, {}).get(micro_batch)
    if point:
        return StageTime(point.forward, point.backward, point.spread)
    forward, backward = (
        read_grid(
            {t: {b: getattr(time, part) for b, time in row.items()} for t, row in grid.items()},
            tp,
            micro_batch,
        )
        for part in ("forward", "backward")
    )
    if not forward or not backward:
        return None
    own = max(time.spread for row in grid.values() for time in row.values())
    spread = own + max(forward.spread, backward.spread)
    return StageTime(forward.value, backward.value, spread)


@functools.lru_cache(maxsize=4096)
def _weight_gradient_share(layer: Layer, micro_batch: int, sequence_length: int, tp: int) -> float:
    """Share of a measured backward that makes weight gradients, by FLOPs: a matrix product has
    as many for its weight as for its input, attention has no weight (Qi et al. 2023,
    arXiv 2401.10241 table 1)."""
    products = everything = 0.0
    for operator in layer.operators(micro_batch, sequence_length, tp=tp):
        everything += operator.flops
        if operator.kind in ("gemm", "grouped_gemm"):
            products += operator.flops
    return products / (2 * everything) if everything else 0.0


def layer_work(
    layer: Layer,
    chip: Chip,
    shape: tuple[int, ...],
    precision: str,
    software: Software = PLURIBUS,
) -> tuple[Work, Work, float]:
    """Forward, backward and its weight-gradient part of one layer, without communication.

    Args:
        shape: micro-batch, sequence length, and the degrees tp, cp and ep (1 where left out).
    """
    micro_batch, sequence_length, tp, cp, ep = (*shape, 1, 1, 1)[:5]
    # Head and embedding stay in 16 bits where the matrices of the blocks are in 8.
    in_blocks = layer.kind in ("dense", "moe")
    precision = precision if in_blocks or precision != "fp8" else "bf16"
    forward, backward, weights = Work(), Work(), 0.0
    element = max(2, DTYPE_BYTES[precision])
    for operator in layer.operators(
        micro_batch, sequence_length, tp=tp, cp=cp, ep=ep, bytes_per_element=element
    ):
        ahead, back, weight = operator_work(operator, chip, precision, software)
        forward, backward, weights = forward + ahead, backward + back, weights + weight
    return forward, backward, weights


def optimizer_seconds(parameters: float, chip: Chip, profile: Profile | None) -> float:
    """Seconds of one AdamW update of this many parameters on one chip.

    Without a measurement: memory traffic of a fused update, which reads the parameter, its
    gradient and two moments and writes three of them back, 28 bytes per fp32 parameter.
    """
    measured = profile and profile.optimizer(chip.key)
    if measured:
        return parameters * measured.seconds_per_parameter
    return parameters * 28 / chip.memory_bytes_per_s


def update_seconds(
    layers: Sequence[Layer],
    parameters: float,
    chip: Chip,
    tp: int,
    sequence_length: int,
    precision: str,
    profile: Profile | None,
) -> float:
    """Seconds of the optimiser for some layers: layer by layer where that was measured, else by
    the number of parameters on the chip."""
    total = 0.0
    for layer in layers:
        grid = (
            profile.layer_grid(chip.key, layer.signature, sequence_length, precision)
            if (profile)
            else {}
        )
        # An update does not know of micro-batches: the median over those it was timed with.
        row = {
            degree: statistics.median(updates)
            for degree, times in grid.items()
            if (updates := [time.update for time in times.values() if time.update is not None])
        }
        if not row:
            return optimizer_seconds(parameters, chip, profile)
        total += read_share(row, tp)
    return total


def _tensor_parallel_seconds(
    layer: Layer, pool: Pool, micro_batch: int, sequence_length: int, tp: int, element: float
) -> float:
    """The sums of one direction of one layer (Shoeybi et al. 2019, arXiv 1909.08053 §3): a block
    sums its hidden state twice, an embedding or head once."""
    sums = 2 if layer.kind in ("dense", "moe") else 1
    num_bytes = layer.output_bytes(micro_batch, sequence_length, bytes_per_element=element)
    return sums * collective_seconds(ALL_REDUCE, num_bytes, GroupShape(tp), links_of(pool)).seconds
