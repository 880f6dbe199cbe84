"""A regular layout on one pool: every replica alike, every stage alike but the ends.

One pipeline stands for all of them, so that ten thousand chips cost as much as eight. Schedules
enter by their closed forms instead of a timeline, and a layout is first reduced to its `Terms`,
on which a calibration can be tried in microseconds. What cannot be written this way (unlike
stages, unlike pools) takes `forecast`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer
from pluribus.model.model import Model
from pluribus.predict.algorithms import GroupShape
from pluribus.predict.calibrate import interval
from pluribus.predict.calibration import IDENTITY, Calibration
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.compute import layer_work
from pluribus.predict.link_classes import links_of
from pluribus.predict.operators import ELEMENTWISE_EFFICIENCY, Work
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.prediction import Interval

Schedule = Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv"]

# Bytes one update moves per parameter: fp32 gradient read for the norm and again for the
# update, master weight and both moments read and written, the 16-bit copy written, and the
# gradient cleared.
UPDATE_BYTES = 38

# Share of a collective that an overlapping program still waits for; a typical figure.
NEVER_HIDDEN = 0.1

# How sharply the slower of host and chip sets the pace; fitted on half of vTrain's single-node
# runs.
PACE_POWER = 5.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one model is spread over tp × cp × pp × dp chips.

    Attributes:
        micro_batch, global_batch: sequences.
        ep: expert-parallel ranks, taken from dp.
        virtual_stages: chunks of layers each stage holds.
        zero: ZeRO stage, 0 to 3.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    virtual_stages: int = 1
    zero: int = 0
    micro_batch: int = 1
    global_batch: int = 1
    recompute: Literal["none", "selective", "full"] = "none"
    schedule: Schedule = "1f1b"

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica in a step."""
        return max(1, self.global_batch // (self.dp * self.micro_batch))

    @property
    def num_chips(self) -> int:
        return self.tp * self.cp * self.pp * self.dp


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of layer: forward, backward, the backward's weight-gradient seconds, and whether
    full recompute runs it again (blocks)."""

    forward: Work
    backward: Work
    weight: float
    recomputed: bool


@dataclass(frozen=True)
class Terms:
    """A layout reduced to what its step time is made of.

    Attributes:
        stages: of each unlike stage: how many there are, and its (part, layers) pairs.
        message: one boundary message.
        sync: gradients summed over the replicas.
        gather: ZeRO-3: weights gathered and gradients scattered, per micro-batch.
        update: the optimiser.
    """

    layout: Layout
    software: Software
    stages: tuple[tuple[int, tuple[tuple[Part, int], ...]], ...]
    message: Work
    sync: Work
    gather: Work
    update: Work

    def seconds(self, calibration: Calibration = IDENTITY) -> float:
        """Seconds of one step."""
        layout, software = self.layout, self.software
        host = (software.host_s + software.host_talk_s * (layout.tp - 1)) * calibration.host
        rerun = {"none": 0.0, "selective": software.selective_again, "full": 1.0}[layout.recompute]
        stages, message = layout.pp, self.message.seconds(calibration)
        total = slot = weight = last_backward = 0.0
        for count, parts in self.stages:
            forward = backward = weights = 0.0
            for part, layers in parts:
                ahead = _either(part.forward.seconds(calibration), host)
                back = part.backward.seconds(calibration)
                back = _either(back, software.host_backward * host)
                again = ahead * rerun if part.recomputed else 0.0
                forward += layers * ahead
                backward += layers * (back + again)
                weights += layers * part.weight * calibration.matmul
            total += count * (forward + backward)
            if forward + backward > slot:
                slot, weight, last_backward = forward + backward, weights, backward
        messages = 2 * message * layout.virtual_stages if stages > 1 else 0.0
        hidden = layout.schedule == "interleaved" and software.overlap_messages
        steady = layout.micro_batches * (
            slot + messages * (NEVER_HIDDEN if hidden else 1)
            + software.micro_batch_s * calibration.host
        )  # fmt: skip
        # What the pipeline takes to fill and drain, beyond its slowest stage's own work.
        fill = total - slot + (stages - 1) * messages
        match layout.schedule:
            case "interleaved":
                fill /= layout.virtual_stages
            case "zb-h1":  # Qi et al. 2023, arXiv 2401.10241, table 1
                fill = max(0.0, fill - 2 * (stages - 1) * weight)
            case "zb-h2" | "zbv":
                fill = max(0.0, fill - 3 * (stages - 1) * weight)
        sync = self.sync.seconds(calibration)
        if software.overlap_gradients:
            sync = max(NEVER_HIDDEN * sync, sync - last_backward)
        gather = self.gather.seconds(calibration)
        # A pipeline gathers once a step and keeps its stage whole until the end.
        times = layout.micro_batches if stages == 1 else 1
        gather = max(NEVER_HIDDEN * gather, gather - slot) * times
        update = self.update.seconds(calibration) + software.step_s * calibration.host
        return (steady + fill + sync + gather + update) * calibration.overhead


def _without_weights(backward: Work, weight: float) -> Work:
    """A backward that makes no weight gradients."""
    kept = 1 - weight / max(weight, backward.matmul + backward.experts) if weight else 1.0
    return replace(backward, matmul=backward.matmul * kept, experts=backward.experts * kept)


def _either(chip: float, host: float) -> float:
    """Seconds of a layer that the host launches and the chip works on at the same time: the
    longer of both, and more where now one and now the other is behind."""
    if not host:
        return chip
    return (chip**PACE_POWER + host**PACE_POWER) ** (1 / PACE_POWER)


def regular_terms(
    model: Model,
    pool: Pool,
    layout: Layout,
    sequence_length: int,
    precision: str,
    software: Software = PLURIBUS,
) -> Terms:
    """Reduces a layout to its terms; nodes are filled by tp, then cp, then dp, then pp.

    Raises:
        PlanError: the chip has no arithmetic of this precision.
    """
    degrees = (layout.tp, layout.cp, layout.ep)
    parts: dict[str, Part] = {}
    rate = pool.chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY

    def part(layer: Layer) -> Part:
        if layer.signature not in parts:
            shape = (layout.micro_batch, sequence_length, *degrees)
            forward, backward, weight = layer_work(layer, pool.chip, shape, precision, software)
            talk = _layer_talk(layer, pool, layout, sequence_length, software)
            block = layer.kind in ("dense", "moe")
            if layout.cp > 1:
                extra = software.ring_attention - 1
                forward += Work(attention=forward.attention * extra)
                backward += Work(attention=backward.attention * extra)
            if software.frozen:
                backward, weight = _without_weights(backward, weight), 0.0
            else:
                summed = layer.parameters_per_rank(tp=layout.tp, ep=layout.ep)
                backward += Work(memory=summed * software.accumulate_bytes / rate)
            parts[layer.signature] = Part(forward + talk, backward + talk, weight, block)
        return parts[layer.signature]

    unlike: dict[tuple, int] = {}
    for layers in stage_layers(model, layout):
        counts: dict[Part, int] = {}
        for layer in layers:
            counts[part(layer)] = counts.get(part(layer), 0) + 1
        key = tuple(counts.items())
        unlike[key] = unlike.get(key, 0) + 1
    parameters = max(
        sum(layer.parameters_per_rank(tp=layout.tp, ep=1) for layer in layers)
        for layers in stage_layers(model, layout)
    )
    local = max(
        sum(layer.parameters_per_rank(tp=layout.tp, ep=layout.ep) for layer in layers)
        for layers in stage_layers(model, layout)
    )
    replicas = layout.dp * layout.cp
    # Experts are summed over, and their update is shared by, the dp / ep replicas that hold
    # them; the rest by all.
    experts = (parameters - local) / (layout.ep - 1) if layout.ep > 1 else 0.0
    sync = gather = Work()
    owned = 0.0
    if not software.frozen:
        for held, members, inner in (
            (local - experts, replicas, layout.tp),
            (experts, max(1, replicas // layout.ep), layout.tp * layout.ep),
        ):
            owned += held / (members if layout.zero else 1)
            grads = held * software.gradient_sync_bytes
            if not held or members == 1:
                continue
            if layout.zero >= 3:
                gather += _talk("all_gather", held * 2, members, inner, pool) * 2
                sync += _talk("reduce_scatter", grads, members, inner, pool)
            elif layout.zero:
                sync += _talk("reduce_scatter", grads, members, inner, pool)
                sync += _talk("all_gather", held * 2, members, inner, pool)
            else:
                sync += _talk("all_reduce", grads, members, inner, pool)
    hidden = layout.micro_batch * sequence_length * model.hidden_size * 2 / layout.cp
    reach = layout.tp * layout.cp * layout.dp
    message = _talk("send", hidden / layout.tp, 2, reach, pool) if layout.pp > 1 else Work()
    return Terms(
        layout, software, tuple((n, stage) for stage, n in unlike.items()), message, sync, gather,
        Work(memory=owned * UPDATE_BYTES / rate),
    )  # fmt: skip


def stage_layers(model: Model, layout: Layout) -> list[Sequence[Layer]]:
    """The layers of each stage: blocks dealt evenly, embedding first, head last.

    Where only two blocks more would divide evenly, the ends have one block fewer.
    """
    blocks, stages = model.layers[1:-1], layout.pp
    counts = [len(blocks) // stages + (i < len(blocks) % stages) for i in range(stages)]
    if stages > 2 and len(blocks) % stages and (len(blocks) + 2) % stages == 0:
        counts = [(len(blocks) + 2) // stages] * stages
        counts[0], counts[-1] = counts[0] - 1, counts[-1] - 1
    result, first = [], 0
    for stage, count in enumerate(counts):
        layers = list(blocks[first : first + count])
        first += count
        if stage == 0:
            layers.insert(0, model.layers[0])
        if stage == stages - 1:
            layers.append(model.layers[-1])
        result.append(layers)
    return result


def regular_interval(terms: Terms, calibration: Calibration = IDENTITY) -> Interval:
    """Seconds of one step with the range the truth is expected in."""
    return interval(terms.seconds, calibration)


def _layer_talk(
    layer: Layer, pool: Pool, layout: Layout, sequence_length: int, software: Software
) -> Work:
    """Collectives of one direction of one layer: tensor-parallel sums (Shoeybi et al. 2019),
    experts' all-to-alls, and keys and values passed around context-parallel ranks."""
    hidden = layer.output_bytes(layout.micro_batch, sequence_length) / layout.cp
    talk = Work()
    block = layer.kind in ("dense", "moe")
    if layout.tp > 1:
        # Tokens divided between the regions are gathered before and scattered after each
        # (Korthikanti et al. 2022, arXiv 2205.05198, §4.2.2): as many bytes, no sum in a switch.
        ops = ("all_gather", "reduce_scatter") if software.sequence_parallel else ("all_reduce",)
        once = functools.reduce(Work.__add__, (_talk(op, hidden, layout.tp, 1, pool) for op in ops))
        talk += once * ((2 if block else 1) * (1 - software.overlap_tensor))
    if layout.cp > 1 and block:
        # Keys and values of the whole sequence; passing them is half hidden by attention.
        heads = layer.attention
        width = getattr(heads, "num_kv_heads", 1) * getattr(heads, "head_dim", 0) or 512
        gathered = 2 * layout.micro_batch * sequence_length * width * 2 / layout.tp
        talk += _talk("all_gather", gathered, layout.cp, layout.tp, pool) * 0.5
    if layout.ep > 1 and layer.kind == "moe":
        pairs = hidden * layer.feed_forward.top_k / layout.tp
        # Experts are whole, so their group runs over tensor-parallel neighbours first.
        talk += _talk("all_to_all", pairs, layout.ep, 1, pool) * 2
    return talk


def _talk(op: str, num_bytes: float, members: int, inner: int, pool: Pool) -> Work:
    """A collective of ``members`` ranks that lie ``inner`` chips apart."""
    seconds, across = _collective(op, num_bytes, members, inner, pool)
    return Work(inter=seconds) if across else Work(intra=seconds)


@functools.lru_cache(maxsize=8192)
def _collective(
    op: str, num_bytes: float, members: int, inner: int, pool: Pool
) -> tuple[float, bool]:
    per_node = max(1, min(members, pool.chips_per_node // inner))
    nodes = -(-members // per_node)
    group = GroupShape(per_node, nodes)
    return float(collective_seconds(op, num_bytes, group, links_of(pool)).seconds), nodes > 1
