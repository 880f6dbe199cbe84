"""Seconds of a layer on a chip: measured where a Profile has it, otherwise the sum of its
operators, each from the profile's tables (`operator_tables.py`) or by its shape (`operators.py`),
and of what its ranks say to each other. Measurements of the layer at other sizes correct that sum
(`nearby.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer, Recompute
from pluribus.model.share import Share
from pluribus.predict.grid import read_grid
from pluribus.predict.nearby import Level
from pluribus.predict.operator_tables import TABLE_SPREAD, OperatorTimes, operator_times
from pluribus.predict.operators import ELEMENTWISE_EFFICIENCY, Work, operator_work
from pluribus.predict.replicas import exposed_seconds
from pluribus.predict.software import PLURIBUS, Software
from pluribus.predict.stage_time import StageTime, added
from pluribus.predict.talk import Talk, layer_talk
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.profile import Grid, LayerTime, Profile, indices

# Half-width of the interval around a roofline time; rooflines with one efficiency per chip are
# 31–45 % off on published GEMM tables, and sums of many operators about half of that.
ROOFLINE_SPREAD = 0.25

# Bytes moved to make one element of a 16-bit input or gradient of a product 8 bits wide: it is
# read, and written along its rows for one product and along its columns for another.
QUANTISE_BYTES = 4

# How sharply the slower of host and chip sets the pace; fitted on half of vTrain's single-node
# runs.
PACE_POWER = 5.0


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One kind of layer for one micro-batch, before a cluster's factors.

    Attributes:
        forward, backward: of one rank, without talk.
        weight: seconds of the backward that make weight gradients.
        talk: of one direction.
        block: whether full recompute runs it again, and the host launches it.
        spread: relative half-width of its interval before calibration.
        measured: its time in a profile, which replaces all of the above.
    """

    forward: Work
    backward: Work
    weight: float
    talk: Talk
    block: bool
    spread: float = ROOFLINE_SPREAD
    measured: StageTime | None = None

    def time(
        self, calibration: Calibration, software: Software, tp: int, recompute: Recompute
    ) -> StageTime:
        """Seconds with a cluster's factors; the backward with what recompute runs again."""
        again = recomputed_share(software, recompute) if self.block else 0.0
        if self.measured:
            time = self.measured
            return StageTime(
                time.forward, time.backward + again * time.forward, time.spread,
                time.weight_gradient,
            )  # fmt: skip
        host = 0.0
        if self.block:
            host = (software.host_s + software.host_talk_s * (tp - 1)) * calibration.host
        talk = self.talk.total.seconds(calibration)
        forward = _pace(software.drag * (self.forward.seconds(calibration) + talk), host)
        tensor = shown = self.talk.tensor.seconds(calibration)
        if software.overlap_backward:
            # Where tokens are divided, the gather before a region's backward stays exposed.
            under = tensor / 2 if software.sequence_parallel else tensor
            shown += exposed_seconds(under, self.weight * calibration.matmul) - under
        backward = self.backward.seconds(calibration) + talk - tensor + shown
        backward = _pace(software.drag * backward, software.host_backward * host)
        return StageTime(
            forward,
            backward + again * forward,
            calibration.spread or self.spread,
            self.weight * calibration.matmul,
            tensor=(1 + again) * tensor + shown,
            expert=(2 + again) * self.talk.expert.seconds(calibration),
            context=(2 + again) * self.talk.context.seconds(calibration),
        )


def _pace(chip: float, host: float) -> float:
    """Seconds of a layer that the host launches and the chip works on at the same time: the
    longer of both, and more where now one and now the other is behind."""
    if not host:
        return chip
    return (chip**PACE_POWER + host**PACE_POWER) ** (1 / PACE_POWER)


def recomputed_share(software: Software, recompute: Recompute) -> float:
    """The part of a block's forward that runs again in its backward."""
    return {"none": 0.0, "selective": software.selective_again, "full": 1.0}[recompute]


def share_of(
    micro_batch: int, sequence_length: int, precision: str, software: Software = PLURIBUS,
    *, tp: int = 1, cp: int = 1, ep: int = 1,
) -> Share:  # fmt: skip
    """What one rank computes of a micro-batch; activations have 16 bits at least."""
    element = max(2, DTYPE_BYTES[precision])
    return Share(
        micro_batch, sequence_length, tp, cp, ep, element, software.sequence_parallel
    )  # fmt: skip


def layer_cost(
    layer: Layer,
    pool: Pool,
    share: Share,
    precision: str,
    software: Software = PLURIBUS,
    profile: Profile | None = None,
) -> LayerCost:
    """What one rank does for one layer and one micro-batch.

    Raises:
        PlanError: the chip has no arithmetic of this precision.
    """
    times = operator_times(profile, pool.chip)
    formula = _formula(layer, pool, share, precision, software, times)
    if not profile or share.cp > 1 or share.ep > 1:  # profiles measure no such ranks
        return formula
    shape = (share.micro_batch, share.sequence_length, share.tp)
    found = profile.layer(pool.chip.key, layer.signature, *shape, precision)
    if found:
        weights = found.backward * _weight_gradient_share(layer, *shape)
        measured = StageTime(found.forward, found.backward, found.spread, weights)
        return LayerCost(Work(), Work(), 0.0, Talk(), formula.block, measured=measured)
    if indices(layer.signature):
        # A layer of its own, known by its place: no other is like it.
        grid = profile.layer_grid(pool.chip.key, layer.signature, share.sequence_length, precision)
        read = measured_time(grid, share.tp, share.micro_batch)
        if read:
            weights = read.backward * _weight_gradient_share(layer, *shape)
            read = replace(read, weight_gradient=weights)
            return replace(formula, talk=Talk(), measured=read)
    near = profile.layers_like(pool.chip.key, layer.signature, precision)
    if not near:
        return formula
    level = _level(replace(layer, name=""), pool, near, software, times)
    sums = formula.talk.total.seconds(IDENTITY)
    corrected = level.correct(_alone(formula), sums, shape)
    return replace(formula, talk=Talk(), measured=corrected)


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


def _without_weights(backward: Work, weight: float) -> Work:
    """A backward that makes no weight gradients."""
    kept = 1 - weight / max(weight, backward.matmul + backward.experts) if weight else 1.0
    return replace(backward, matmul=backward.matmul * kept, experts=backward.experts * kept)


def _alone(cost: LayerCost) -> StageTime:
    """A layer by its formula, without talk, a host's launches and a cluster's factors."""
    return StageTime(
        cost.forward.seconds(IDENTITY), cost.backward.seconds(IDENTITY), cost.spread, cost.weight
    )


@functools.lru_cache(maxsize=4096)
def _level(
    layer: Layer,
    pool: Pool,
    near: tuple[LayerTime, ...],
    software: Software,
    times: OperatorTimes | None,
) -> Level:
    """The measured times of a layer beside what its formula says of them."""
    guesses = []
    for time in near:
        share = share_of(
            time.micro_batch, time.sequence_length, time.precision, software,
            tp=time.tensor_parallel,
        )  # fmt: skip
        cost = _formula(layer, pool, share, time.precision, software, times)
        alone, sums = _alone(cost), cost.talk.total.seconds(IDENTITY)
        guesses.append((alone.forward + sums, alone.backward + sums))
    return Level(near, guesses)


def _formula(
    layer: Layer,
    pool: Pool,
    share: Share,
    precision: str,
    software: Software,
    times: OperatorTimes | None,
) -> LayerCost:
    """One layer as the sum of its operators, and what its ranks say to each other."""
    block = layer.kind in ("dense", "moe")
    shape: tuple[int, ...] = (
        share.micro_batch,
        share.sequence_length,
        share.tp,
        share.cp,
        share.ep,
    )
    ahead, back, weight = layer_work(layer, pool.chip, shape, precision, software, times)
    if share.cp > 1:
        extra = software.ring_attention - 1
        ahead += Work(attention=ahead.attention * extra)
        back += Work(attention=back.attention * extra)
    if software.frozen:
        back, weight = _without_weights(back, weight), 0.0
    else:
        summed = layer.parameters_per_rank(tp=share.tp, ep=share.ep)
        rate = pool.chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
        back += Work(memory=summed * software.accumulate_bytes / rate)
    talk = layer_talk(layer, pool, share, software, times)
    spread = TABLE_SPREAD if times else ROOFLINE_SPREAD
    return LayerCost(ahead, back, weight, talk, block, spread)


def stage_time(
    layers: Sequence[Layer],
    pool: Pool,
    micro_batch: int,
    sequence_length: int,
    *,
    tp: int,
    recompute: Recompute,
    precision: str,
    profile: Profile | None,
    calibration: Calibration = IDENTITY,
    software: Software = PLURIBUS,
    cp: int = 1,
    ep: int = 1,
) -> StageTime:
    """Seconds of one micro-batch through a run of layers on chips of one pool.

    Raises:
        PlanError: the chip has no arithmetic of this precision.
    """
    share = share_of(micro_batch, sequence_length, precision, software, tp=tp, cp=cp, ep=ep)
    return added(
        [
            (
                layer_cost(layer, pool, share, precision, software, profile).time(
                    calibration, software, tp, recompute
                ),
                count,
            )
            for layer, count in counted(layers)
        ]
    )


def counted(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """One layer of each signature, and how many there are: equal signatures cost the same."""
    kinds: dict[str, tuple[Layer, int]] = {}
    for layer in layers:
        _, count = kinds.get(layer.signature, (layer, 0))
        kinds[layer.signature] = layer, count + 1
    return list(kinds.values())


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
    return stage_time(
        [layer], pool, micro_batch, sequence_length, tp=tp, recompute="none",
        precision=precision, profile=profile, calibration=calibration,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _weight_gradient_share(layer: Layer, micro_batch: int, sequence_length: int, tp: int) -> float:
    """Share of a measured backward that makes weight gradients, by FLOPs: a matrix product has
    as many for its weight as for its input, attention has no weight (Qi et al. 2023,
    arXiv 2401.10241 table 1)."""
    products = everything = 0.0
    for operator in layer.operators(Share(micro_batch, sequence_length, tp)):
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
    share = Share(micro_batch, sequence_length, tp, cp, ep, element, software.sequence_parallel)
    quantised, before = chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY / QUANTISE_BYTES, None
    for operator in layer.operators(share):
        tabled = times and times.work(operator, precision, micro_batch, software)
        moved = passes * (software.loss_passes if operator.name == "cross_entropy" else 1.0)
        found = tabled or operator_work(operator, chip, precision, software, moved)
        ahead, back, weight = found
        forward, backward, weights = forward + ahead, backward + back, weights + weight
        if precision == "fp8" and operator.kind in ("gemm", "grouped_gemm"):
            # Experts have rows of their own, other matrices of one operator and their neighbours of
            # one width share them.
            many = operator.count if operator.kind == "grouped_gemm" else 1
            inputs = many * operator.m * operator.k
            if before != inputs:
                forward += Work(memory=inputs / quantised)
            backward += Work(memory=operator.m * operator.n * operator.count / quantised)
            before = inputs
        else:
            before = None
    return forward, backward, weights
