"""The head: final norm, output matrix and the loss over the vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pluribus.model.layer import Layer, LayerKind, Recompute
from pluribus.model.norm import Norm, norm_parameters
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share

_LOGIT_BYTES = 4  # cross-entropy runs in fp32


@dataclass(frozen=True)
class Head(Layer):
    """The last layer of every model. Its loss is part of it.

    Attributes:
        vocab_size: rows of the output matrix, divided over tp; the last shard may be smaller.
        width: columns of the output matrix; `hidden_size` unless projected first (OPT-350M).
        tied: whether the output matrix is the token table of the embedding.
        norm: the final norm, or None (OPT-350M).
        other_prefixes: weights beside the output matrix: the final norm, the projection.
    """

    vocab_size: int
    width: int
    tied: bool
    norm: Norm | None
    other_prefixes: tuple[str, ...] = ()

    @property
    def kind(self) -> LayerKind:
        return "head"

    @property
    def signature(self) -> str:
        parts = [f"head-h{self.hidden_size}-v{self.vocab_size}"]
        if self.width != self.hidden_size:
            parts.append(f"e{self.width}")
        if self.norm != "rms":
            parts.append(f"{self.norm or 'no'}norm")
        if self.tied:
            parts.append("tied")
        return "-".join(parts)

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (self.name, *self.other_prefixes)

    @property
    def parameters(self) -> int:
        return self.parameters_per_rank()

    @property
    def tied_parameters(self) -> int:
        return self.vocab_size * self.width if self.tied else 0

    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        projection = self.width * self.hidden_size if self.width != self.hidden_size else 0
        matrix = 0 if self.tied else math.ceil(self.vocab_size / tp) * self.width
        return norm_parameters(self.norm, self.hidden_size) + projection + matrix

    def operators(self, share: Share) -> tuple[Operator, ...]:
        tokens, columns = share.tokens, math.ceil(self.vocab_size / share.tp)
        steps = []
        if self.norm:
            moved = 2 * share.shard_tokens * self.hidden_size
            steps.append(elementwise("norm", moved, share.bytes_per_element))
        if self.width != self.hidden_size:
            rows = share.shard_tokens
            steps.append(
                gemm("project_out", rows, self.width, self.hidden_size, share.bytes_per_element)
            )
        steps.append(gemm("lm_head", tokens, columns, self.width, share.bytes_per_element))
        # Logits are read once, softmax probabilities written and read once in fp32.
        loss_bytes = share.bytes_per_element + 2 * _LOGIT_BYTES
        steps.append(elementwise("cross_entropy", tokens * columns, loss_bytes))
        return tuple(steps)

    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        """As `Layer.activation_bytes`: hidden inputs, fp32 logits, and their gradient.

        Korthikanti et al. 2022, section 4.3, count the fp32 logits; the softmax gradient of
        equal size is alive with them at the start of the backward. The head's backward follows
        its forward at once, so recomputation saves nothing and ``recompute`` changes nothing.
        """
        kept = self.hidden_size if self.norm else 0
        kept += self.hidden_size if self.width != self.hidden_size else 0
        hidden = share.shard_tokens * (kept + self.width) * share.bytes_per_element
        return hidden + share.tokens * math.ceil(self.vocab_size / share.tp) * 2 * _LOGIT_BYTES

    def supports_tp(self, tp: int) -> bool:
        return 1 <= tp <= self.vocab_size
