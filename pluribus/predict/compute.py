"""Seconds of a layer on a chip: measured where a Profile has it, otherwise the sum of its
operators, each from the profile's tables (`operator_tables.py`) or by its shape (`operators.py`).
Measurements of the layer at other sizes correct that sum (`nearby.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer
from pluribus.predict.algorithms import ALL_REDUCE, GroupShape
from pluribus.predict.calibration import IDENTITY, Calibration
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.link_classes import links_of
from pluribus.predict.nearby import Level, Shape, StageTime
from pluribus.predict.operator_tables import TABLE_SPREAD, OperatorTimes, operator_times
from pluribus.predict.operators import Work, operator_work
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.profile import LayerTime, Profile

# Half-width of the interval around a roofline time; rooflines with one efficiency per chip are
# 31–45 % off on published GEMM tables, and sums of many operators about half of that.
ROOFLINE_SPREAD = 0.25


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
    """Seconds of one layer for one micro-batch, with its tensor-parallel sums."""
    measured = profile and profile.layer(
        pool.chip.key, layer.signature, micro_batch, sequence_length, tp, precision
    )
    if measured:
        share = _weight_gradient_share(layer, micro_batch, sequence_length, tp)
        return StageTime(
            measured.forward, measured.backward, measured.spread, measured.backward * share
        )
    shape = (micro_batch, sequence_length, tp)
    times = operator_times(profile, pool.chip)
    formula, sums = _formula(layer, pool, shape, precision, times, calibration)
    near = profile.layers_like(pool.chip.key, layer.signature, precision) if profile else ()
    if near:
        level = _level(replace(layer, name=""), pool, near, times, calibration)
        return level.correct(formula, sums, shape)
    return StageTime(
        formula.forward + sums, formula.backward + sums, formula.spread, formula.weight_gradient
    )


def _formula(
    layer: Layer,
    pool: Pool,
    shape: Shape,
    precision: str,
    times: OperatorTimes | None,
    calibration: Calibration,
) -> tuple[StageTime, float]:
    """One layer as the sum of its operators, and the tensor-parallel sums of one direction."""
    micro_batch, sequence_length, tp = shape
    ahead, back, weights = layer_work(layer, pool.chip, shape, precision, times=times)
    sums = 0.0
    if tp > 1:
        num_bytes = layer.output_bytes(micro_batch, sequence_length, DTYPE_BYTES[precision])
        sums = _tensor_parallel_seconds(layer, pool, tp, num_bytes, times) * calibration.intra
    time = StageTime(
        ahead.seconds(calibration),
        back.seconds(calibration),
        calibration.spread or (TABLE_SPREAD if times else ROOFLINE_SPREAD),
        weights * calibration.matmul,
    )
    return time, sums


@functools.lru_cache(maxsize=4096)
def _level(
    layer: Layer,
    pool: Pool,
    near: tuple[LayerTime, ...],
    times: OperatorTimes | None,
    calibration: Calibration,
) -> Level:
    """The measured times of a layer beside what its formula says of them."""
    guesses = []
    for time in near:
        shape = (time.micro_batch, time.sequence_length, time.tensor_parallel)
        formula, sums = _formula(layer, pool, shape, time.precision, times, calibration)
        guesses.append((formula.forward + sums, formula.backward + sums))
    return Level(near, guesses)


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
    times: OperatorTimes | None = None,
) -> tuple[Work, Work, float]:
    """Forward, backward and its weight-gradient part of one layer, without communication.

    Args:
        shape: micro-batch, sequence length, and the degrees tp, cp and ep (1 where left out).
        times: tables of the chip, which replace the formula of an operator they have.
    """
    micro_batch, sequence_length, tp, cp, ep = (*shape, 1, 1, 1)[:5]
    # Head and embedding stay in 16 bits where the matrices of the blocks are in 8.
    in_blocks = layer.kind in ("dense", "moe")
    precision = precision if in_blocks or precision != "fp8" else "bf16"
    forward, backward, weights = Work(), Work(), 0.0
    element = max(2, DTYPE_BYTES[precision])
    passes = software.eager_passes if getattr(layer, "norm", None) == "rms" else 1.0
    for operator in layer.operators(
        micro_batch, sequence_length, tp=tp, cp=cp, ep=ep, bytes_per_element=element
    ):
        tabled = times and times.work(operator, precision, micro_batch)
        ahead, back, weight = tabled or operator_work(operator, chip, precision, software, passes)
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


def _tensor_parallel_seconds(
    layer: Layer, pool: Pool, tp: int, num_bytes: float, times: OperatorTimes | None
) -> float:
    """The sums of one direction of one layer (Shoeybi et al. 2019, arXiv 1909.08053 §3): a block
    sums its hidden state twice, an embedding or head once."""
    sums = 2 if layer.kind in ("dense", "moe") else 1
    seconds = times and times.collective(ALL_REDUCE, tp, num_bytes)
    if seconds is None:
        seconds = collective_seconds(ALL_REDUCE, num_bytes, GroupShape(tp), links_of(pool)).seconds
    return sums * seconds
