"""Degrees: how the chips of one stage divide its work and its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.model.layer import Layer, Recompute
from pluribus.predict.software import Software
from pluribus.spec.plan import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """tp × cp × dp chips; see `spec.plan.Stage`.

    Attributes:
        ep: expert-parallel ranks, taken from dp × cp.
        zero: ZeRO stage over the dp × cp replicas, 0 to 3 (Rajbhandari et al. 2019,
            arXiv 1910.02054): from 1 the optimiser is divided, from 2 the gradients, from 3
            the weights.
    """

    tp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    zero: int = 0
    recompute: Recompute = "none"

    @classmethod
    def of(cls, stage: Stage) -> Degrees:
        """Those of a stage of a plan."""
        return cls(
            tp=stage.tensor_parallel, cp=stage.context_parallel, ep=stage.expert_parallel,
            dp=stage.data_parallel, zero=stage.zero, recompute=stage.recompute,
        )  # fmt: skip

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights outside experts."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> float:
        """Ranks that hold the same experts."""
        return self.replicas / self.ep


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one rank holds: parameters in experts that are dealt over ep, and all others."""

    shared: float
    experts: float = 0.0

    @classmethod
    def of(cls, layers: Sequence[Layer], degrees: Degrees, tied: float = 0.0) -> Parameters:
        """Of some layers; ``tied`` is what a tied matrix adds to the rank."""
        held = sum(layer.parameters_per_rank(tp=degrees.tp, ep=degrees.ep) for layer in layers)
        if degrees.ep == 1:
            return cls(held + tied)
        whole = sum(layer.parameters_per_rank(tp=degrees.tp) for layer in layers)
        # E experts' parameters become E / ep: whole − held is E (1 − 1/ep).
        experts = (whole - held) / (degrees.ep - 1)
        return cls(held - experts + tied, experts)

    @property
    def total(self) -> float:
        return self.shared + self.experts

    def owned(self, degrees: Degrees) -> float:
        """What one rank has of a state that ZeRO divides over the replicas."""
        return self.shared / degrees.replicas + self.experts / max(1.0, degrees.expert_replicas)


def updated(parameters: Parameters, degrees: Degrees, software: Software) -> float:
    """Parameters that one rank's optimiser updates."""
    if software.frozen:
        return 0.0
    return parameters.owned(degrees) if degrees.zero else parameters.total
