"""A layer of which only the size is known: what an imported profile says of a foreign model."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.model.layer import Layer, LayerKind, Recompute
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share

_LOGIT_BYTES = 4  # cross-entropy runs in fp32

# Activations of a block without its attention scores, in elements per token and hidden column:
# 34 bytes in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198, eq. 1).
_KEPT_PER_COLUMN = 17


@dataclass(frozen=True)
class BareLayer(Layer):
    """A layer without an inside: its cost is its parameters' matrix products.

    Attributes:
        layer_kind: embedding, dense or head.
        size: parameters.
        degrees: tensor-parallel degrees it is known to divide over.
        vocab_size: of a head, 0 of others.
    """

    layer_kind: LayerKind
    size: int
    degrees: tuple[int, ...]
    vocab_size: int = 0

    @property
    def kind(self) -> LayerKind:
        return self.layer_kind

    @property
    def signature(self) -> str:
        return f"bare-{self.layer_kind}-h{self.hidden_size}-p{self.size}"

    @property
    def parameters(self) -> int:
        return self.size

    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        return -(-self.size // tp)

    def operators(self, share: Share) -> tuple[Operator, ...]:
        h = self.hidden_size
        if self.layer_kind == "embedding":
            return (elementwise("lookup", 2 * share.tokens * h, share.bytes_per_element),)
        columns = max(1, round(self.size / h / share.tp))
        return (gemm("matrices", round(share.tokens), columns, h, share.bytes_per_element),)

    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        hidden = share.shard_tokens * self.hidden_size * share.bytes_per_element
        if self.layer_kind == "embedding":
            return 0.0
        if self.layer_kind == "head":
            return hidden + share.tokens * self.vocab_size / share.tp * 2 * _LOGIT_BYTES
        return hidden if recompute == "full" else _KEPT_PER_COLUMN * hidden

    def supports_tp(self, tp: int) -> bool:
        return tp in self.degrees
