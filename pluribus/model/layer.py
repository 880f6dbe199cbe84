"""The contract of a layer: what the planner, the predictor and the trainer ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from pluribus.model.operator import Operator
from pluribus.model.share import Share

LayerKind = Literal["embedding", "dense", "moe", "head"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layer(ABC):
    """One unit that a pipeline stage holds or does not hold.

    Attributes:
        name: Hugging Face prefix of its weights: ``model.layers.3``, ``lm_head``.
        hidden_size: width of the hidden state that passes between layers.

    Notes:
        FLOPs count matrix products and attention only, a multiply-add as two. Causal attention
        counts half of the square of the sequence (the convention of Megatron-Bridge; MosaicML
        counts the whole square). ``ep`` is taken from the data-parallel ranks: with balanced
        routing each rank still computes as many token-expert pairs, over fewer experts.
    """

    name: str
    hidden_size: int

    @property
    @abstractmethod
    def kind(self) -> LayerKind:
        """What the layer is."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """A stable name of its cost: equal signatures cost the same. Keys measured profiles."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Every Hugging Face prefix of its weights; ``name`` is one of them."""
        return (self.name,)

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Parameters of the whole layer; a tied matrix counts in the embedding only."""

    @property
    def active_parameters(self) -> int:
        """Parameters one token touches: of the routed experts only the chosen ones."""
        return self.parameters

    @property
    def tied_parameters(self) -> int:
        """Size of the embedding matrix this layer needs a copy of when placed away from it."""
        return 0

    @abstractmethod
    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        """Parameters the largest rank holds.

        Norms, routers, low-rank inputs and biases of row-parallel matrices are whole on every
        rank; KV heads are repeated when there are more ranks than heads; experts are divided by
        ep and each by tp; embedding and head by vocabulary. Tied parameters are not included.
        """

    @abstractmethod
    def operators(self, share: Share) -> tuple[Operator, ...]:
        """One rank's forward of one micro-batch, in order.

        Args:
            share: its degrees must satisfy `supports_tp` and `supports_ep`; causal work is
                balanced over context-parallel ranks.
        """

    @abstractmethod
    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        """Bytes one rank keeps from forward to backward of one micro-batch.

        The tensors that autograd saves, counted as Korthikanti et al. 2022 (arXiv:2205.05198,
        eq. 1, 2 and 4) count them and extended to grouped and latent attention, gated FFN and
        experts. Unlike there: attention is a flash kernel, so there is no term in the square
        of the sequence; there is no dropout, so no masks; norms are fused kernels that keep
        their input; the statistics of norms and softmax (under 1 %) are left out.

        Args:
            recompute: ``none`` keeps all; ``selective`` keeps the outputs of matrix products and
                of attention and recomputes norms and activation functions (the scores, which
                Korthikanti recomputes, a flash kernel never keeps); ``full`` keeps the input.
        """

    @abstractmethod
    def supports_tp(self, tp: int) -> bool:
        """Whether the layer divides over ``tp`` ranks."""

    def supports_ep(self, ep: int) -> bool:
        """Whether the layer's experts divide over ``ep`` ranks; layers without any always do."""
        return ep >= 1

    def forward_flops(self, share: Share) -> float:
        """FLOPs of one rank's forward of one micro-batch: the sum over `operators`.

        Causal attention counts half of the square (see the class notes).
        """
        return sum(operator.flops for operator in self.operators(share))

    def backward_flops(self, share: Share) -> float:
        """FLOPs of the backward, twice the forward: gradients of inputs and of weights.

        Recomputed operators, and the scores a flash kernel recomputes, are not included.
        """
        return 2 * self.forward_flops(share)

    def output_bytes(self, share: Share) -> float:
        """Bytes of the hidden state passed to the next layer, divided by cp only:
        (batch, sequence, hidden)."""
        tokens = share.micro_batch * share.sequence_length / share.cp
        return tokens * self.hidden_size * share.bytes_per_element
