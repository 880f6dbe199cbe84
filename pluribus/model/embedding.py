"""The embedding: token table, learned positions, projection and norm where a family has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pluribus.model.layer import Layer, LayerKind, Recompute
from pluribus.model.norm import Norm, norm_parameters
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share

_TOKEN_ID_BYTES = 8  # torch saves the int64 ids for the backward of the lookup


@dataclass(frozen=True)
class Embedding(Layer):
    """Layer 0 of every model.

    Attributes:
        vocab_size: rows of the token table, divided over tp; the last shard may be smaller.
        width: columns of the token table; `hidden_size` unless a projection follows (OPT-350M).
        positions: rows of a learned position table, 0 without one.
        norm: the norm after the lookup (BLOOM), or None.
        other_prefixes: weights beside the token table.
    """

    vocab_size: int
    width: int
    positions: int = 0
    norm: Norm | None = None
    other_prefixes: tuple[str, ...] = ()

    @property
    def kind(self) -> LayerKind:
        return "embedding"

    @property
    def signature(self) -> str:
        parts = [f"embedding-h{self.hidden_size}-v{self.vocab_size}"]
        if self.width != self.hidden_size:
            parts.append(f"e{self.width}")
        if self.positions:
            parts.append(f"p{self.positions}")
        if self.norm:
            parts.append(f"{self.norm}norm")
        return "-".join(parts)

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (self.name, *self.other_prefixes)

    @property
    def parameters(self) -> int:
        return self.parameters_per_rank()

    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        table = math.ceil(self.vocab_size / tp) * self.width
        projection = self.width * self.hidden_size if self.width != self.hidden_size else 0
        norm = norm_parameters(self.norm, self.hidden_size)
        return table + projection + self.positions * self.hidden_size + norm

    def operators(self, share: Share) -> tuple[Operator, ...]:
        tokens, h = share.shard_tokens, self.hidden_size
        # Each rank reads the rows it owns and writes a partial sum for every token.
        moved = share.tokens * self.width * (1 / share.tp + 1) * share.bytes_per_element
        steps = [Operator("embed_tokens", "lookup", 0.0, moved + share.tokens * _TOKEN_ID_BYTES)]
        if self.width != h:
            steps.append(gemm("project_in", tokens, h, self.width, share.bytes_per_element))
        if self.positions:
            steps.append(elementwise("add_positions", 3 * tokens * h, share.bytes_per_element))
        if self.norm:
            steps.append(elementwise("norm", 2 * tokens * h, share.bytes_per_element))
        return tuple(steps)

    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        ids = share.tokens * _TOKEN_ID_BYTES
        if recompute == "full":
            return ids
        kept = self.width if self.width != self.hidden_size else 0
        kept += self.hidden_size if self.norm else 0
        return ids + share.shard_tokens * kept * share.bytes_per_element

    def supports_tp(self, tp: int) -> bool:
        return 1 <= tp <= self.vocab_size
