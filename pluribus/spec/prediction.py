"""Prediction: what a Plan will take, in seconds, bytes and money."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Seconds with the range the truth is expected in."""

    mid: float
    low: float
    high: float

    @classmethod
    def around(cls, mid: float, spread: float) -> Interval:
        """From mid ÷ (1 + spread) to mid × (1 + spread): errors are ratios."""
        return cls(mid=mid, low=mid / (1 + spread), high=mid * (1 + spread))


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Where the bottleneck chip's step goes, in seconds; the parts sum to the step time.

    Attributes:
        compute: forward and backward.
        pipeline_communication: sending and receiving that nothing hides.
        bubble: waiting for a neighbour stage.
        gradient_sync: summing gradients over replicas, where nothing hides it.
        optimizer: the update.
        tensor_communication, expert_communication, context_communication: talk of the stage's
            ranks inside forward and backward.
        weight_gather: waiting for weights that ZeRO-3 has on other chips.
    """

    compute: float
    pipeline_communication: float
    bubble: float
    gradient_sync: float
    optimizer: float
    tensor_communication: float = 0.0
    expert_communication: float = 0.0
    context_communication: float = 0.0
    weight_gather: float = 0.0

    @property
    def inside_stage(self) -> float:
        """All that the ranks of the stage wait for one another in forward and backward."""
        talk = self.tensor_communication + self.expert_communication + self.context_communication
        return talk + self.weight_gather


@dataclass(frozen=True, kw_only=True)
class ChipMemory:
    """Bytes on each chip of one stage at the fullest moment.

    Attributes:
        activations: kept from forward to backward, logits and what is open in a backward.
        buffers: of messages, and of weights that ZeRO-3 has gathered.
        process: what a process takes before it trains: runtime, kernels, libraries.
        capacity: what allocations can reach before fragmentation ends the run.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    capacity: float
    process: float = 0.0

    @property
    def tensors(self) -> float:
        """All but the process itself: the peak that an allocator reports."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def total(self) -> float:
        return self.tensors + self.process

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


@dataclass(frozen=True, kw_only=True)
class StagePrediction:
    """One stage of one pipeline.

    Attributes:
        forward, backward: seconds of one micro-batch.
        busy: the share of the step in which the stage computes.
    """

    forward: float
    backward: float
    busy: float
    memory: ChipMemory


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a Plan will take.

    Attributes:
        step_seconds: one optimiser step.
        breakdown: of the bottleneck chip.
        stages: per pipeline, per stage.
        tokens_per_s: of the whole plan.
        mfu: model FLOPs (causal attention halved, no recompute) ÷ peak FLOPs of the chips used.
        aggregation: throughput ÷ the sum of what each pool would deliver alone; 1 means that
            mixing loses nothing (HetHub, arXiv 2405.16256, reports 0.976). None when no pool can
            hold the model alone.
        alone_tokens_per_s: per pool address, what it delivers alone (0: does not fit).
        money_per_step: of every chip of the plan for one step, in the cluster's currency.
        bound_tokens_per_s: what the plan's chips would compute if each trained whole sequences by
            itself with room for all, and never talked, waited or recomputed: no plan on them
            computes more where every chip is alike, and few come near it where chips are unlike.
    """

    step_seconds: Interval
    breakdown: Breakdown
    stages: tuple[tuple[StagePrediction, ...], ...]
    tokens_per_s: float
    mfu: float | None
    aggregation: float | None
    alone_tokens_per_s: dict[str, float]
    money_per_step: float
    bound_tokens_per_s: float = 0.0

    @property
    def of_bound(self) -> float | None:
        """Throughput ÷ the compute bound; unlike aggregation it needs no plan of a pool alone."""
        return self.tokens_per_s / self.bound_tokens_per_s if self.bound_tokens_per_s else None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One row of the planner's table: a plan it weighed, and what it would take.

    Attributes:
        name: how the chips are used, e.g. "2 unlike pipelines, 13 + 3 micro-batches".
        step_seconds: predicted.
        memory_share: of the fullest chip, used ÷ capacity.
        aggregation: see `Prediction.aggregation`.
        money_per_step: see `Prediction.money_per_step`.
        chosen: the planner's answer.
        note: why it loses.
    """

    name: str
    step_seconds: float
    memory_share: float
    aggregation: float | None
    money_per_step: float
    chosen: bool = False
    note: str = ""
