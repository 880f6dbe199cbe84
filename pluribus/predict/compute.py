"""Seconds of a layer on a chip: measured where a Profile has it, otherwise a roofline.

Roofline (Williams, Waterman, Patterson 2009): an operator takes the longer of its arithmetic at
the chip's measured matmul rate and its memory traffic at the chip's bandwidth, plus a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer
from pluribus.predict.collectives import ring_all_reduce_seconds
from pluribus.spec.profile import Profile

# Launching one operator from Python on an accelerator; an order of magnitude, not fitted.
LAUNCH_SECONDS = 5e-6

# Half-width of the interval around a roofline time; rooflines with one efficiency per chip are
# 31–45 % off on published GEMM tables, and sums of many operators about half of that.
ROOFLINE_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one micro-batch through some layers, and how uncertain they are.

    Attributes:
        backward: with the recomputed forward, where the stage recomputes.
        spread: relative half-width.
    """

    forward: float
    backward: float
    spread: float

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
) -> StageTime:
    """Seconds of one micro-batch through a run of layers on chips of one pool.

    Raises:
        ConfigError: the chip has no arithmetic of this precision.
    """
    forward = backward = weighted = 0.0
    for layer in layers:
        time = layer_time(layer, pool, micro_batch, sequence_length, tp, precision, profile)
        # Recompute keeps the head's input anyway: its forward is not run twice.
        again = time.forward if recompute == "full" and layer.kind in ("dense", "moe") else 0.0
        forward += time.forward
        backward += time.backward + again
        weighted += time.spread * time.total
    total = forward + backward
    return StageTime(forward, backward, weighted / total if total else 0.0)


def layer_time(
    layer: Layer,
    pool: Pool,
    micro_batch: int,
    sequence_length: int,
    tp: int,
    precision: str,
    profile: Profile | None,
) -> StageTime:
    """Seconds of one layer for one micro-batch, with its tensor-parallel sums."""
    measured = profile and profile.layer(
        pool.chip.key, layer.signature, micro_batch, sequence_length, tp, precision
    )
    if measured:
        return StageTime(measured.forward, measured.backward, measured.spread)
    element = DTYPE_BYTES[precision]
    forward = backward = 0.0
    for operator in layer.operators(micro_batch, sequence_length, tp=tp, bytes_per_element=element):
        once = _roofline(operator.flops, operator.bytes, pool.chip, precision)
        forward += once
        # Backward computes the gradients of the input and of the weight: twice the work.
        backward += 2 * once
    if tp > 1:
        sums = _tensor_parallel_seconds(layer, pool, micro_batch, sequence_length, tp, element)
        forward += sums
        backward += sums
    return StageTime(forward, backward, ROOFLINE_SPREAD)


def optimizer_seconds(parameters: float, chip: Chip, profile: Profile | None) -> float:
    """Seconds of one AdamW update of this many parameters on one chip.

    Without a measurement: memory traffic of a fused update, which reads the parameter, its
    gradient and two moments and writes three of them back, 28 bytes per fp32 parameter.
    """
    measured = profile and profile.optimizer(chip.key)
    if measured:
        return parameters * measured.seconds_per_parameter
    return parameters * 28 / chip.memory_bytes_per_s


def _roofline(flops: float, num_bytes: float, chip: Chip, precision: str) -> float:
    arithmetic = flops / chip.matmul_flops(precision) if flops else 0.0
    return max(arithmetic, num_bytes / chip.memory_bytes_per_s) + LAUNCH_SECONDS


def _tensor_parallel_seconds(
    layer: Layer, pool: Pool, micro_batch: int, sequence_length: int, tp: int, element: float
) -> float:
    """The sums of one direction of one layer (Shoeybi et al. 2019, arXiv 1909.08053 §3): a block
    sums its hidden state twice, an embedding or head once."""
    sums = 2 if layer.kind in ("dense", "moe") else 1
    latency_s = pool.intra_latency_us * 1e-6
    num_bytes = layer.output_bytes(micro_batch, sequence_length, bytes_per_element=element)
    return sums * ring_all_reduce_seconds(num_bytes, tp, latency_s, pool.intra_bytes_per_s)
