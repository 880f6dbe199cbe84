"""Bytes on each chip of a stage at its fullest moment.

Mixed precision keeps fp32 master weights, gradients and both Adam moments, and a 16-bit copy
for computing: 18 bytes per parameter (Rajbhandari et al. 2019, arXiv 1910.02054 §3.1, plus the
fp32 gradient our sums are taken in); fp32 training needs 16.
"""

from __future__ import annotations

from pluribus.core.units import DTYPE_BYTES, GIB
from pluribus.hardware.cluster import Pool
from pluribus.predict.schedule import max_in_flight
from pluribus.predict.setting import Setting, boundary_bytes
from pluribus.spec.plan import Pipeline, Stage
from pluribus.spec.prediction import ChipMemory

# Runtime, kernels and library workspaces of one process; typical figures, not fitted.
CONTEXT_BYTES = {"cpu": 0.4 * GIB}
ACCELERATOR_CONTEXT_BYTES = 2.0 * GIB

# Share of a chip that allocations can reach before fragmentation ends the run; not fitted.
USABLE_SHARE = 0.95


def stage_parameters(setting: Setting, stage: Stage) -> int:
    """Parameters on one chip of a stage, a tied matrix counted on each side that holds it."""
    layers = setting.model.layers
    tp, ep = stage.tensor_parallel, stage.expert_parallel
    held = stage.layer_indices
    count = sum(layers[i].parameters_per_rank(tp=tp, ep=ep) for i in held)
    tied = setting.tied_layers
    if tied and tied[1] in held and tied[0] not in held:
        count += layers[tied[1]].tied_parameters // tp
    return count


def weight_bytes(setting: Setting) -> float:
    """Bytes of one parameter as stored for computing: fp32, and a 16-bit copy if mixed."""
    copy = DTYPE_BYTES[setting.precision] if setting.precision != "fp32" else 0.0
    return 4 + copy


GRADIENT_BYTES = 4
OPTIMIZER_BYTES = 8


def buffer_bytes(setting: Setting, pool: Pool, micro_batch_size: int) -> float:
    """Bytes of a process's runtime and of one message in and one out."""
    context = CONTEXT_BYTES.get(pool.chip.device, ACCELERATOR_CONTEXT_BYTES)
    if pool.chip.context_gib is not None:
        context = pool.chip.context_gib * GIB
    return context + 2 * boundary_bytes(setting, micro_batch_size)


def stage_memory(setting: Setting, pipeline: Pipeline, index: int) -> ChipMemory:
    """Bytes on each chip of stage ``index`` of a pipeline."""
    stage = pipeline.stages[index]
    pool = setting.pool(stage.pool)
    parameters = stage_parameters(setting, stage)
    element = DTYPE_BYTES[setting.precision]
    shape = (pipeline.micro_batch_size, setting.sequence_length)
    share = {"tp": stage.tensor_parallel, "cp": stage.context_parallel}
    on_chip = setting.layers_on(stage.pool)
    layers = [on_chip[i] for i in stage.layer_indices]
    kept = sum(
        layer.activation_bytes(
            *shape, **share, bytes_per_element=element, recompute=stage.recompute
        )
        for layer in layers
    )
    working = max(
        layer.activation_bytes(*shape, **share, bytes_per_element=element) for layer in layers
    )
    # Without recompute the layer in backward already counts among the kept ones.
    transient = working if stage.recompute == "full" else 0.0
    software = setting.software
    if layers[-1].kind == "head":
        logits = shape[0] * shape[1] * setting.model.vocab_size / stage.tensor_parallel
        transient += software.loss_copies * logits * element
    return ChipMemory(
        weights=parameters * weight_bytes(setting),
        gradients=parameters * GRADIENT_BYTES,
        optimizer=parameters * OPTIMIZER_BYTES / (stage.data_parallel if stage.zero else 1),
        activations=kept * max_in_flight(pipeline, index) * (1 + software.cache_share) + transient,
        buffers=buffer_bytes(setting, pool, pipeline.micro_batch_size),
        capacity=pool.chip.memory_bytes * USABLE_SHARE,
    )
