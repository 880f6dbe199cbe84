"""Bytes on each chip of a stage at its fullest moment.

Mixed precision keeps fp32 master weights, gradients and both Adam moments, and a 16-bit copy
for computing: 18 bytes per parameter (Rajbhandari et al. 2019, arXiv 1910.02054 §3.1, plus the
fp32 gradient our sums are taken in); fp32 training needs 16. What other programs keep stands in
their `Software`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.core.units import DTYPE_BYTES, GIB
from pluribus.hardware.chip import Chip
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head
from pluribus.model.layer import Layer, Recompute
from pluribus.model.share import Share
from pluribus.predict.compute import share_of
from pluribus.predict.degrees import Degrees, Parameters
from pluribus.predict.measured_layer import MeasuredLayer
from pluribus.predict.schedule import max_in_flight
from pluribus.predict.setting import Setting
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.plan import Pipeline, ScheduleName, Stage
from pluribus.spec.prediction import ChipMemory

# Runtime, kernels and library workspaces of one process; typical figures, not fitted.
CONTEXT_BYTES = {"cpu": 0.4 * GIB}
ACCELERATOR_CONTEXT_BYTES = 2.0 * GIB

# Share of a chip that allocations can reach before fragmentation ends the run; not fitted.
USABLE_SHARE = 0.95

# Of one parameter, in fp32: what Pluribus itself keeps and sums.
GRADIENT_BYTES = 4
OPTIMIZER_BYTES = 8

# Scores kept per head and pair of tokens where attention is not fused: softmax output, dropout
# mask and dropout output, 5 bytes (Korthikanti et al. 2022, arXiv 2205.05198, eq. 1).
SCORE_BYTES = 5


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of one parameter: stored for computing, its gradient, and its optimiser's state."""

    weight: float
    gradient: float
    optimizer: float

    @classmethod
    def of(cls, software: Software, precision: str) -> StateBytes:
        if software.frozen:  # adapters' own share is under a hundredth
            return cls(DTYPE_BYTES["fp32" if precision == "fp32" else "bf16"], 0, 0)
        if precision == "fp32":  # no 16-bit copy, no other master
            return cls(4, 4, 8)
        return cls(software.weight_bytes, software.gradient_bytes, software.optimizer_bytes)

    @property
    def total(self) -> float:
        return self.weight + self.gradient + self.optimizer


def chip_memory(
    layers: Sequence[Layer],
    parameters: Parameters,
    degrees: Degrees,
    share: Share,
    precision: str,
    chip: Chip,
    *,
    in_flight: float,
    schedule: ScheduleName,
    neighbours: bool,
    vocab_size: int,
    software: Software = PLURIBUS,
) -> ChipMemory:
    """Bytes on one chip of a stage.

    Args:
        layers: that the stage holds.
        parameters: of one rank, a tied matrix included.
        share: of one micro-batch.
        in_flight: micro-batches whose activations are held at the fullest moment.
        neighbours: whether it talks to other stages.
    """
    state = StateBytes.of(software, precision)
    owned = parameters.owned(degrees)

    # Between the micro-batches of a pipeline a stage keeps its weights and gradients whole: to
    # gather and scatter them every time would cost more than all its messages.
    whole_stage = degrees.zero >= 3 and neighbours

    def divided(num_bytes: float, from_zero: int) -> float:
        if degrees.zero < from_zero or (whole_stage and from_zero == 2):
            return num_bytes * parameters.total
        return num_bytes * owned

    activations = 0.0
    for layer in layers:
        held = held_at_once(layer, schedule, in_flight)
        activations += held * kept_bytes(layer, share, degrees.recompute, software)
    activations *= 1 + software.cache_share
    if degrees.recompute == "full":
        activations += max((working_bytes(layer, share, software) for layer in layers), default=0)
    if layers[-1].kind == "head":
        activations += loss_bytes(vocab_size, share, software)
    buffers = gathered_bytes(layers[0].hidden_size, share, software)
    if neighbours:
        buffers += 2 * message_bytes(layers[0].hidden_size, share)
    if whole_stage:
        buffers += share.bytes_per_element * parameters.total
    elif degrees.zero >= 3:
        # Weights of the layer in use and of the next.
        most = max(layer.parameters_per_rank(tp=degrees.tp, ep=degrees.ep) for layer in layers)
        buffers += 2 * share.bytes_per_element * most
    return ChipMemory(
        weights=divided(state.weight, 3),
        gradients=divided(state.gradient, 2),
        optimizer=divided(state.optimizer, 1),
        activations=activations * (1 + software.fragmentation),
        buffers=buffers,
        process=process_bytes(chip),
        capacity=chip.memory_bytes * USABLE_SHARE,
    )


def held_at_once(layer: Layer, schedule: ScheduleName, in_flight: float) -> float:
    """Micro-batches a layer keeps activations of. The head's backward follows its forward at
    once and never waits with others, but where every forward comes first."""
    return 1 if layer.kind == "head" and schedule != "gpipe" else in_flight


def loss_bytes(vocab_size: int, share: Share, software: Software) -> float:
    """Logits beyond those that the head keeps, while the loss is taken."""
    logits = share.micro_batch * share.sequence_length * vocab_size / share.tp
    return software.loss_copies * logits * share.bytes_per_element


def gathered_bytes(hidden_size: int, share: Share, software: Software = PLURIBUS) -> float:
    """Hidden states that the block at work has whole, where its ranks divide the tokens."""
    divided = share.tp > 1 and share.sequence_parallel
    return software.gathered * message_bytes(hidden_size, share) if divided else 0.0


def process_bytes(chip: Chip) -> float:
    """What a process takes before it trains."""
    if chip.context_gib is not None:
        return chip.context_gib * GIB
    return CONTEXT_BYTES.get(chip.device, ACCELERATOR_CONTEXT_BYTES)


def message_bytes(hidden_size: int, share: Share) -> float:
    """The hidden state of one micro-batch."""
    tokens = share.micro_batch * share.sequence_length / share.cp
    return tokens * hidden_size * share.bytes_per_element


def working_bytes(layer: Layer, share: Share, software: Software = PLURIBUS) -> float:
    """What a layer that full recompute runs again has open in its backward. A layer that is not
    run again already counts among the kept ones."""
    return kept_bytes(layer, share, "none", software) if layer.kind in ("dense", "moe") else 0.0


def kept_bytes(
    layer: Layer, share: Share, recompute: Recompute, software: Software = PLURIBUS
) -> float:
    """Bytes one layer keeps of one micro-batch from forward to backward."""
    block = layer.kind in ("dense", "moe")
    # Before flash attention, selective recompute drops the scores and keeps the rest.
    scores_only = recompute == "selective" and not software.flash_attention
    kept = layer.activation_bytes(share, "none" if scores_only else recompute)
    if isinstance(layer, MeasuredLayer):
        return kept
    tokens = share.micro_batch * share.sequence_length / share.cp
    if isinstance(layer, Head):
        return kept + tokens * layer.vocab_size / share.tp * (software.logit_bytes - 8)
    if not block or recompute == "full":
        return kept
    if recompute == "selective":
        kept *= software.selective_kept
    network = layer.feed_forward
    if software.fused_gate and recompute == "none" and isinstance(network, DenseFeedForward):
        fused = network.activation == "gated"
        width = share.bytes_per_element * tokens * network.intermediate_size / share.tp
        kept -= width if fused else 0.0
    if not software.flash_attention:
        heads = layer.attention.num_heads / share.tp
        if recompute == "none":
            kept += SCORE_BYTES * heads * tokens * share.sequence_length
        kept += 2 * tokens * layer.hidden_size  # two dropout masks of a byte
    return kept


def tied_copy(setting: Setting, stage: Stage) -> int:
    """Parameters of the tied matrix on a chip whose stage has the head, not the embedding."""
    tied, held = setting.tied_layers, stage.layer_indices
    if tied and tied[1] in held and tied[0] not in held:
        return setting.model.layers[tied[1]].tied_parameters // stage.tensor_parallel
    return 0


def held_parameters(setting: Setting, stage: Stage) -> Parameters:
    """What one chip of a stage holds, a tied matrix counted on each side that holds it."""
    layers = [setting.model.layers[i] for i in stage.layer_indices]
    return Parameters.of(layers, Degrees.of(stage), tied_copy(setting, stage))


def stage_parameters(setting: Setting, stage: Stage) -> int:
    """Parameters on one chip of a stage, a tied matrix counted on each side that holds it."""
    return round(held_parameters(setting, stage).total)


def weight_bytes(setting: Setting) -> float:
    """Bytes of one parameter as stored for computing."""
    return StateBytes.of(setting.software, setting.precision).weight


def stage_memory(setting: Setting, pipeline: Pipeline, index: int) -> ChipMemory:
    """Bytes on each chip of stage ``index`` of a pipeline."""
    stage = pipeline.stages[index]
    degrees = Degrees.of(stage)
    share = share_of(
        pipeline.micro_batch_size, setting.sequence_length, setting.precision, setting.software,
        tp=degrees.tp, cp=degrees.cp, ep=degrees.ep,
    )  # fmt: skip
    # Replicas beyond those of other stages share what is in flight.
    per_replica = max_in_flight(pipeline, index) * pipeline.replicas / degrees.dp
    return chip_memory(
        [setting.layers_on(stage.pool)[i] for i in stage.layer_indices],
        held_parameters(setting, stage),
        degrees,
        share,
        setting.precision,
        setting.pool(stage.pool).chip,
        in_flight=max(1.0, per_replica),
        schedule=pipeline.schedule,
        neighbours=len(pipeline.stages) > 1,
        vocab_size=setting.model.vocab_size,
        software=setting.software,
    )
