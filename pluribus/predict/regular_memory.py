"""Bytes on the fullest chip of a regular layout, by ZeRO stage, schedule and recompute."""

from __future__ import annotations

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.cluster import Pool
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head
from pluribus.model.layer import Layer
from pluribus.model.model import Model
from pluribus.predict.memory import ACCELERATOR_CONTEXT_BYTES, CONTEXT_BYTES, USABLE_SHARE
from pluribus.predict.regular import Layout, stage_layers
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.prediction import ChipMemory

# Scores kept per head and pair of tokens where attention is not fused: softmax output, dropout
# mask and dropout output, 5 bytes (Korthikanti et al. 2022, arXiv 2205.05198, eq. 1).
SCORE_BYTES = 5


def regular_memory(
    model: Model,
    pool: Pool,
    layout: Layout,
    sequence_length: int,
    precision: str,
    software: Software = PLURIBUS,
) -> ChipMemory:
    """Bytes at the fullest moment of the chip that needs most."""
    stages = [
        _stage_memory(model, pool, layout, sequence_length, precision, software, index, layers)
        for index, layers in enumerate(stage_layers(model, layout))
        # Stages between differ by what they hold in flight only: the first of them holds most.
        if index in (0, 1, layout.pp - 1)
    ]
    return max(stages, key=lambda memory: memory.total)


def stages_in_flight(layout: Layout, index: int) -> float:
    """Activations a stage holds at its fullest, in units of all its layers for one micro-batch.

    1F1B: PipeDream-Flush, Narayanan et al. 2021 (arXiv 2006.09503); interleaved: the warm-up of
    Narayanan et al. 2021 (arXiv 2104.04473, §2.2); zero bubble: Qi et al. 2023 (arXiv 2401.10241).
    """
    stages, chunks, ahead = layout.pp, layout.virtual_stages, layout.pp - 1 - index
    match layout.schedule:
        case "gpipe":
            held = float(layout.micro_batches)
        case "interleaved":
            held = (2 * ahead + (chunks - 1) * stages + 1) / chunks
        case "zb-h2":
            held = 2.0 * ahead + 1
        case "zbv":
            held = float(stages)
        case _:
            held = 1.0 + ahead
    return min(held, float(layout.micro_batches))


def _stage_memory(
    model: Model,
    pool: Pool,
    layout: Layout,
    sequence_length: int,
    precision: str,
    software: Software,
    index: int,
    layers: list[Layer],
) -> ChipMemory:
    whole = sum(layer.parameters_per_rank(tp=layout.tp) for layer in layers)
    held = sum(layer.parameters_per_rank(tp=layout.tp, ep=layout.ep) for layer in layers)
    if model.tied and layout.pp > 1 and index == layout.pp - 1:
        held += model.layers[-1].tied_parameters // layout.tp
    # Experts are whole on dp / ep replicas only, so that many share their optimiser state.
    experts = (whole - held) / (1 - 1 / layout.ep) / layout.ep if layout.ep > 1 else 0.0
    replicas = layout.dp * layout.cp

    # Between the micro-batches of a pipeline a stage keeps its weights and gradients whole: to
    # gather and scatter them every time would cost more than all its messages.
    whole_stage = layout.zero >= 3 and layout.pp > 1

    def sharded(num_bytes: float, from_zero: int) -> float:
        if layout.zero < from_zero or (whole_stage and from_zero == 2):
            return num_bytes * held
        return num_bytes * ((held - experts) / replicas + experts * layout.ep / replicas)

    kept = sum(_kept_bytes(layer, layout, sequence_length, software) for layer in layers[:-1])
    last = _kept_bytes(layers[-1], layout, sequence_length, software)
    in_flight = stages_in_flight(layout, index)
    # The head's backward follows its forward at once: it never waits with others.
    activations = kept * in_flight + last * (1 if layers[-1].kind == "head" else in_flight)
    if layout.recompute == "full":
        open_layout = Layout(tp=layout.tp, cp=layout.cp, micro_batch=layout.micro_batch)
        activations += max(
            _kept_bytes(layer, open_layout, sequence_length, software)
            for layer in layers
            if layer.kind in ("dense", "moe")
        )
    buffers = 0.0
    if layout.pp > 1:
        buffers = 4.0 * layout.micro_batch * sequence_length * model.hidden_size / layout.cp
    if whole_stage:
        buffers += 2 * held
    elif layout.zero >= 3:
        # 16-bit weights of the layer in use and of the next.
        buffers += 2 * 2 * max(layer.parameters_per_rank(tp=layout.tp) for layer in layers)
    context = CONTEXT_BYTES.get(pool.chip.device, ACCELERATOR_CONTEXT_BYTES)
    assert DTYPE_BYTES[precision] <= 4
    return ChipMemory(
        weights=sharded(software.weight_bytes, 3),
        gradients=sharded(software.gradient_bytes, 2),
        optimizer=sharded(software.optimizer_bytes, 1),
        activations=activations * (1 + software.fragmentation),
        buffers=buffers,
        capacity=pool.chip.memory_bytes * USABLE_SHARE - context,
    )


def _kept_bytes(layer: Layer, layout: Layout, sequence_length: int, software: Software) -> float:
    """Bytes one layer keeps for one micro-batch, in 16 bits."""
    kept = layer.activation_bytes(
        layout.micro_batch, sequence_length, tp=layout.tp, cp=layout.cp,
        sequence_parallel=software.sequence_parallel, recompute=_model_recompute(layout, software),
    )  # fmt: skip
    tokens = layout.micro_batch * sequence_length / layout.cp
    if isinstance(layer, Head):
        return kept + tokens * layer.vocab_size / layout.tp * (software.logit_bytes - 8)
    if layer.kind not in ("dense", "moe") or layout.recompute == "full":
        return kept
    if layout.recompute == "selective":
        kept *= software.selective_kept
    network = layer.feed_forward
    if software.fused_gate and layout.recompute == "none" and isinstance(network, DenseFeedForward):
        fused = network.activation == "gated"
        kept -= 2 * tokens * network.intermediate_size / layout.tp if fused else 0.0
    if not software.flash_attention:
        heads = layer.attention.num_heads / layout.tp
        if layout.recompute == "none":
            kept += SCORE_BYTES * heads * tokens * sequence_length
        kept += 2 * tokens * layer.hidden_size  # two dropout masks of a byte
    return kept


def _model_recompute(layout: Layout, software: Software) -> str:
    """Before flash attention, selective recompute drops the scores and keeps the rest."""
    if layout.recompute == "selective" and not software.flash_attention:
        return "none"
    return layout.recompute
