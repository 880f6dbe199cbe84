"""The feed-forward network: the contract of a block's second half, and the dense network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from pluribus.model.layer import Recompute
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share


class FeedForward(ABC):
    """The part of a block between its second norm and its second residual sum."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Its part of the block's signature."""

    @property
    @abstractmethod
    def active_parameters(self) -> int:
        """Parameters one token touches."""

    @abstractmethod
    def parameters_per_rank(self, tp: int, ep: int) -> int:
        """Parameters of the largest rank; with ``tp=ep=1`` of the whole."""

    @abstractmethod
    def operators(self, share: Share) -> tuple[Operator, ...]:
        """One rank's forward."""

    @abstractmethod
    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        """Bytes kept for the backward beyond the input (the output of the norm)."""

    @abstractmethod
    def supports_tp(self, tp: int) -> bool:
        """Whether the columns divide over ``tp`` ranks."""

    @abstractmethod
    def supports_ep(self, ep: int) -> bool:
        """Whether the experts divide over ``ep`` ranks."""


@dataclass(frozen=True)
class DenseFeedForward(FeedForward):
    """Two matrices around an activation, or three with a gate (Shazeer 2020, SwiGLU).

    Attributes:
        hidden_size: width of its input and output.
        intermediate_size: width between the matrices.
        activation: ``gated`` for act(gate) * up; ``gelu`` for any smooth ungated activation;
            ``relu``, which keeps only its output.
        bias: biases on all its matrices.
    """

    hidden_size: int
    intermediate_size: int
    activation: Literal["gated", "gelu", "relu"] = "gated"
    bias: bool = False

    @property
    def signature(self) -> str:
        text = f"f{self.intermediate_size}"
        text += "" if self.activation == "gated" else f"-{self.activation}"
        return text + ("-fbias" if self.bias else "")

    @property
    def active_parameters(self) -> int:
        return self.parameters_per_rank(1, 1)

    @property
    def _inputs(self) -> int:
        return 2 if self.activation == "gated" else 1

    def parameters_per_rank(self, tp: int, ep: int) -> int:
        columns = self._columns(tp)
        biases = self._inputs * columns + self.hidden_size if self.bias else 0
        return (self._inputs + 1) * self.hidden_size * columns + biases

    def operators(self, share: Share) -> tuple[Operator, ...]:
        f, t, e = self._columns(share.tp), share.tokens, share.bytes_per_element
        name = "gate_up_proj" if self.activation == "gated" else "up_proj"
        return (
            gemm(name, t, f, self.hidden_size, e, count=self._inputs),
            elementwise("activation", (self._inputs + 1) * t * f, e),
            gemm("down_proj", t, self.hidden_size, f, e),
        )

    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        # gated: gate, up, act(gate), their product; selective keeps the first two.
        # gelu: its input and output; selective keeps the first. relu: its output.
        kept = {"gated": (4, 2), "gelu": (2, 1), "relu": (1, 1)}[self.activation]
        tensors = kept[1] if recompute == "selective" else kept[0]
        return share.tokens * tensors * self._columns(share.tp) * share.bytes_per_element

    def supports_tp(self, tp: int) -> bool:
        return tp >= 1 and self.intermediate_size % tp == 0

    def supports_ep(self, ep: int) -> bool:
        return ep >= 1

    def _columns(self, tp: int) -> int:
        assert self.supports_tp(tp), f"tp={tp} does not divide {self.signature}"
        return self.intermediate_size // tp
