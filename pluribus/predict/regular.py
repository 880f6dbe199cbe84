"""A regular layout on one pool: every replica alike, every stage alike but the ends.

One pipeline stands for all of them, so that ten thousand chips cost as much as eight. Schedules
enter by their closed forms instead of a timeline, and a layout is first reduced to its `Terms`,
on which a calibration can be tried in microseconds. What cannot be written this way (unlike
stages, unlike pools) takes `forecast`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pluribus.hardware.cluster import Pool
from pluribus.model.layer import Layer
from pluribus.model.model import Model
from pluribus.model.share import Share
from pluribus.predict.boundary import boundary_work
from pluribus.predict.compute import (
    LayerCost,
    counted,
    layer_cost,
    share_of,
)
from pluribus.predict.degrees import Degrees, Parameters, updated
from pluribus.predict.memory import message_bytes
from pluribus.predict.operators import Work
from pluribus.predict.price import with_gather
from pluribus.predict.replicas import (
    NEVER_HIDDEN,
    Replicas,
    exposed_seconds,
    gather_wait,
    gather_work,
    sync_work,
)
from pluribus.predict.software import PLURIBUS, Software
from pluribus.predict.stage_time import added
from pluribus.predict.update import update_work
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.plan import ScheduleName


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one model is spread over tp × cp × pp × dp chips.

    Attributes:
        micro_batch, global_batch: sequences.
        ep: expert-parallel ranks, taken from dp.
        virtual_stages: chunks of layers each stage holds; in ZBV there are always two.
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
    schedule: ScheduleName = "1f1b"

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica in a step."""
        return max(1, self.global_batch // (self.dp * self.micro_batch))

    @property
    def chunks(self) -> int:
        """Runs of layers that each stage holds."""
        return 2 if self.schedule == "zbv" else self.virtual_stages

    @property
    def num_chips(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    @property
    def degrees(self) -> Degrees:
        """Of each stage."""
        return Degrees(
            tp=self.tp, cp=self.cp, ep=self.ep, dp=self.dp, zero=self.zero,
            recompute=self.recompute,
        )  # fmt: skip

    def share(self, sequence_length: int, precision: str, software: Software) -> Share:
        """What one rank computes of a micro-batch."""
        return share_of(
            self.micro_batch, sequence_length, precision, software, tp=self.tp, cp=self.cp,
            ep=self.ep,
        )  # fmt: skip


@dataclass(frozen=True)
class StageTerms:
    """Like stages.

    Attributes:
        count: how many there are.
        layers: its kinds of layers, each with their number.
        gather: ZeRO 3: its weights gathered, forward and backward.
        wait: what its replicas wait for one another then, in seconds.
        sync: its gradients over its replicas.
        update: its optimiser.
    """

    count: int
    layers: tuple[tuple[LayerCost, int], ...]
    gather: Work
    wait: float
    sync: Work
    update: Work


@dataclass(frozen=True)
class Terms:
    """A layout reduced to what its step time is made of.

    Attributes:
        stages: the unlike ones.
        message: one boundary message.
    """

    layout: Layout
    software: Software
    stages: tuple[StageTerms, ...]
    message: Work

    def seconds(self, calibration: Calibration = IDENTITY) -> float:
        """Seconds of one step."""
        layout, software = self.layout, self.software
        stages, message = layout.pp, self.message.seconds(calibration)
        host = software.micro_batch_s * calibration.host
        total = tail = cycle = 0.0
        slowest = None
        for stage in self.stages:
            times = [
                (cost.time(calibration, software, layout.tp, layout.recompute), count)
                for cost, count in stage.layers
            ]
            time, gather = added(times), stage.gather.seconds(calibration)
            # A pipeline gathers once a step and keeps its stage whole until the end.
            once = exposed_seconds(gather, time.total) if stages > 1 else 0.0
            if stages == 1:
                time = with_gather(time, gather, stage.wait * calibration.host)
            slot = time.total + host
            total += stage.count * slot
            cycle = max(cycle, slot + self._waits(stage.count) * message)
            if slowest is None or time.total > slowest.total:
                slowest = time
            sync = stage.sync.seconds(calibration)
            if software.overlap_gradients:
                sync = exposed_seconds(sync, time.backward)
            tail = max(tail, sync + once + stage.update.seconds(calibration))
        assert slowest
        cycle = max(cycle, total / stages + self._waits(stages) * message)
        # What the pipeline takes to fill and drain, beyond its slowest stage's own work.
        fill = total - slowest.total - host
        if stages > 1:
            fill += (stages - 1) * 2 * message * self._passages
        weight = slowest.weight_gradient
        match layout.schedule:
            case "interleaved":
                fill /= layout.virtual_stages
            case "zb-h1":  # Qi et al. 2023, arXiv 2401.10241, table 1
                fill = max(0.0, fill - 2 * (stages - 1) * weight)
            case "zb-h2" | "zbv":
                fill = max(0.0, fill - 3 * (stages - 1) * weight)
        tail += software.step_s * calibration.host
        return (layout.micro_batches * cycle + fill + tail) * calibration.overhead

    @property
    def _passages(self) -> int:
        """Times a micro-batch's hidden state passes between two neighbours, one way; ZBV's turn
        makes its second passage fall into the first one's wait."""
        return self.layout.virtual_stages if self.layout.schedule == "interleaved" else 1

    def _waits(self, stages: int) -> float:
        """Messages per micro-batch that a row of so many like stages does not hide.

        Sends that hold their sender leave none of the two per neighbour hidden. Otherwise 1F1B,
        with S micro-batches under way over S stages, hides 2 of 2 S on their way around; where
        more are under way, all are hidden.
        """
        if self.layout.pp == 1:
            return 0.0
        if self.software.overlap_messages and self.layout.schedule == "interleaved":
            return 2.0 * self._passages * NEVER_HIDDEN
        if self.software.blocking_messages:
            return 2.0 * self._passages
        if self.layout.schedule in ("gpipe", "zb-h2", "zbv"):
            return 0.0
        return 2.0 * (stages - 1) / stages * self._passages


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
    degrees = layout.degrees
    share = layout.share(sequence_length, precision, software)
    replicas = Replicas.regular(degrees, pool)
    costs: dict[str, LayerCost] = {}
    unlike: dict[tuple, StageTerms] = {}
    for layers in stage_layers(model, layout):
        kinds = []
        for layer, count in counted(layers):
            if layer.signature not in costs:
                costs[layer.signature] = layer_cost(layer, pool, share, precision, software)
            kinds.append((costs[layer.signature], count))
        key = tuple((id(cost), count) for cost, count in kinds)
        if key in unlike:
            unlike[key] = replace(unlike[key], count=unlike[key].count + 1)
            continue
        parameters = Parameters.of(layers, degrees, tied_copy(model, layers, layout))
        owned = updated(parameters, degrees, software)
        gather, wait = Work(), 0.0
        if layout.zero >= 3:
            gather = gather_work(parameters, replicas, share.bytes_per_element)
            blocks = sum(count for cost, count in kinds if cost.block)
            wait = gather_wait(blocks, replicas, software)
        unlike[key] = StageTerms(
            1, tuple(kinds), gather, wait,
            sync_work(parameters, layout.zero, replicas, software, share.bytes_per_element),
            update_work(owned, pool.chip, software),
        )  # fmt: skip
    message = Work()
    if layout.pp > 1:
        message = boundary_work(message_bytes(model.hidden_size, share) * layout.cp, degrees, pool)
    return Terms(layout, software, tuple(unlike.values()), message)


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
        # In ZBV the last virtual stage sits on the first.
        if stage == (0 if layout.schedule == "zbv" else stages - 1):
            layers.append(model.layers[-1])
        result.append(layers)
    return result


def tied_copy(model: Model, layers: Sequence[Layer], layout: Layout) -> int:
    """Parameters of a tied matrix on the last stage where the first is another."""
    apart = model.tied and layers[-1].kind == "head" and layers[0].kind != "embedding"
    return layers[-1].tied_parameters // layout.tp if apart else 0
