"""Seconds of one operator, forward and backward, split by what bounds them."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.hardware.chip import Chip
from pluribus.model.operator import Operator
from pluribus.predict.gemm import gemm_constants, gemm_seconds
from pluribus.predict.software import Software
from pluribus.spec.calibration import Calibration

# Launching one operator where nothing better is known; an order of magnitude, not fitted.
LAUNCH_SECONDS = 5e-6

# What a flash kernel takes for each generation that it is behind the newest for its chip
# (`gemm.toml`): the third is 1.5 to 2.0 x as fast as the second on H100 (Shah et al. 2024, arXiv
# 2407.08608), the second 1.3 to 2.5 x as fast as the first in Triton on A100 (Dao 2023, arXiv
# 2307.08691, §4.1). Not fitted.
FLASH_BEHIND = 1.6
# Exponentials cost as much for narrow heads as for wide ones, on units that did not grow with the
# matrix units. So heads of d reach d / (d + w) of what wide ones do, with w = FLASH_WIDTH × the
# square of the matmul rate of one compute unit (FLOP/s). Fitted on aiconfigurator-core 0.12.0,
# heads of 64 beside those of 128: H100 and H200 0.71 to 0.80, B200, GB200 and GB300 0.58 to 0.65;
# on A100 it gives 0.94 where 0.9 is published (Dao 2023, arXiv 2307.08691, figure 5).
FLASH_WIDTH = 1.22e-24
# Backward of a flash kernel: five products where forward has two, at 0.86 of its rate (Dao 2023,
# arXiv 2307.08691, figures 4 and 5).
FLASH_BACKWARD = 2.9

# Bytes through memory per score where attention is not fused: softmax reads and writes 2 + 2,
# dropout reads 2, writes 2 and a mask byte; backward reads the mask and saved values again.
SCORE_BYTES_FORWARD = 9
SCORE_BYTES_BACKWARD = 11

# Share of the bandwidth that a kernel without matrix products reaches; fitted on half of
# vTrain's single-node runs (A100).
ELEMENTWISE_EFFICIENCY = 0.9


_ROUTING = frozenset({"route", "dispatch", "experts.activation", "combine"})


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of some work by what bounds it.

    Attributes:
        matmul: arithmetic of matrix products.
        attention: scores, softmax and values where one flash kernel makes them.
        memory: memory bandwidth.
        experts: grouped products, and routing tokens to them and back.
        intra, inter: collectives inside a node, between nodes.
    """

    matmul: float = 0.0
    memory: float = 0.0
    intra: float = 0.0
    inter: float = 0.0
    attention: float = 0.0
    experts: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matmul + other.matmul, self.memory + other.memory,
            self.intra + other.intra, self.inter + other.inter,
            self.attention + other.attention, self.experts + other.experts,
        )  # fmt: skip

    def __mul__(self, times: float) -> Work:
        return Work(
            self.matmul * times, self.memory * times, self.intra * times, self.inter * times,
            self.attention * times, self.experts * times,
        )  # fmt: skip

    def seconds(self, calibration: Calibration) -> float:
        """All of it, one after another, with a cluster's factors."""
        return (
            self.matmul * calibration.matmul
            + self.memory * calibration.memory
            + self.intra * calibration.intra
            + self.inter * calibration.inter
            + self.attention * calibration.attention
            + self.experts * calibration.experts
        )


def flash_behind(software: Software, chip: Chip) -> float:
    """Seconds of a program's flash attention over those of the newest kernels of a chip."""
    behind = gemm_constants(chip.key).flash_generation - software.flash_generation
    return FLASH_BEHIND ** max(0, behind)


def operator_work(
    operator: Operator, chip: Chip, precision: str, software: Software, passes: float = 1.0
) -> tuple[Work, Work, float]:
    """Forward, backward, and the part of backward that makes weight gradients, in seconds.

    A chip with known compute units is timed by the shape of its matrix products; any other by
    the roofline (Williams, Waterman, Patterson 2009): the longer of arithmetic at the chip's
    matmul rate and memory traffic at its bandwidth, plus a launch, and twice that backward.

    Args:
        passes: traffic of an operator without matrix products, as a multiple of one fused kernel's.

    Raises:
        PlanError: the chip has no arithmetic of this precision.
    """
    if chip.compute_units is None:
        return _roofline(operator, chip, precision)
    constants = gemm_constants(chip.key)
    launch, kept = constants.launch_s, constants.kept(precision)
    rate = chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
    if operator.kind in ("gemm", "grouped_gemm"):
        m, n, k, count = operator.m, operator.n, operator.k, operator.count
        # Matrices that share their input are one product in effect; experts' follow one another,
        # each with a last wave of its own.
        times, count = (count, 1) if operator.kind == "grouped_gemm" else (1, count)
        once = times * gemm_seconds(m, n, k, count, chip, precision) / kept
        data = times * gemm_seconds(m, k, n, count, chip, precision) / kept
        weight = times * gemm_seconds(k, n, m, count, chip, precision) / kept
        if operator.kind == "grouped_gemm":
            return Work(experts=once), Work(experts=data + weight), weight
        return Work(matmul=once), Work(matmul=data + weight), weight
    if operator.kind == "attention":
        # Attention stays in 16 bits where the matrices are in 8.
        wide = "bf16" if precision == "fp8" else precision
        if software.flash_attention:
            share = constants.flash(operator.n)
            width = FLASH_WIDTH * (chip.matmul_flops(wide) / chip.compute_units) ** 2
            share *= min(1.0, operator.k / (operator.k + width) * (1 + width / 128))
            rate_reached = chip.matmul_flops(wide) * share * constants.kept(wide)
            once = operator.flops / rate_reached * flash_behind(software, chip) + launch
            return Work(attention=once), Work(attention=once * FLASH_BACKWARD), 0.0
        m, n, k, count = operator.m, operator.n, operator.k, operator.count
        scores = gemm_seconds(m, n, k, count, chip, wide)
        values = gemm_seconds(m, k, n, count, chip, wide)
        turned = gemm_seconds(n, k, m, count, chip, wide)
        square = count * m * n / rate
        return (
            Work(scores + values, square * SCORE_BYTES_FORWARD + 2 * launch),
            Work(scores + values + 2 * turned, square * SCORE_BYTES_BACKWARD + 2 * launch),
            0.0,
        )
    once = operator.bytes * passes / rate + launch
    # Backward reads the saved input beside the gradient.
    if operator.name in _ROUTING:
        return Work(experts=once), Work(experts=1.5 * once), 0.0
    return Work(memory=once), Work(memory=1.5 * once), 0.0


def _roofline(operator: Operator, chip: Chip, precision: str) -> tuple[Work, Work, float]:
    arithmetic = operator.flops / chip.matmul_flops(precision) if operator.flops else 0.0
    once = max(arithmetic, operator.bytes / chip.memory_bytes_per_s) + LAUNCH_SECONDS
    has_weights = operator.kind in ("gemm", "grouped_gemm")
    work = Work(matmul=once) if operator.flops else Work(memory=once)
    return work, work * 2, once if has_weights else 0.0
