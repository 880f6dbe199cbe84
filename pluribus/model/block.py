"""The decoder block: attention and feed-forward, each with a norm and a residual sum."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.model.attention import Attention
from pluribus.model.experts import Experts
from pluribus.model.feed_forward import FeedForward
from pluribus.model.layer import Layer, LayerKind, Recompute
from pluribus.model.norm import Norm, norm_parameters
from pluribus.model.operator import Operator, elementwise
from pluribus.model.share import Share


@dataclass(frozen=True)
class Block(Layer):
    """One decoder block.

    Attributes:
        attention: its first half.
        feed_forward: its second half; `Experts` make the block a ``moe`` block.
        norm: the kind of its two norms; before or after the halves costs the same.
        parallel_residual: both halves read the block's input (GPT-NeoX).
    """

    attention: Attention
    feed_forward: FeedForward
    norm: Norm = "rms"
    parallel_residual: bool = False

    @property
    def kind(self) -> LayerKind:
        return "moe" if isinstance(self.feed_forward, Experts) else "dense"

    @property
    def signature(self) -> str:
        text = f"{self.kind}-h{self.hidden_size}-{self.attention.signature}"
        text += f"-{self.feed_forward.signature}"
        text += "" if self.norm == "rms" else f"-{self.norm}norm"
        return text + ("-parallel" if self.parallel_residual else "")

    @property
    def parameters(self) -> int:
        return self.parameters_per_rank()

    @property
    def active_parameters(self) -> int:
        return self._outside_feed_forward(1) + self.feed_forward.active_parameters

    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        return self._outside_feed_forward(tp) + self.feed_forward.parameters_per_rank(tp, ep)

    def operators(self, share: Share) -> tuple[Operator, ...]:
        hidden = share.shard_tokens * self.hidden_size
        return (
            elementwise("attention_norm", 2 * hidden, share.bytes_per_element),
            *self.attention.operators(share),
            elementwise("attention_residual", 3 * hidden, share.bytes_per_element),
            elementwise("feed_forward_norm", 2 * hidden, share.bytes_per_element),
            *self.feed_forward.operators(share),
            elementwise("feed_forward_residual", 3 * hidden, share.bytes_per_element),
        )

    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        hidden = share.shard_tokens * self.hidden_size * share.bytes_per_element
        if recompute == "full":
            return hidden
        norm_inputs = 1 if self.parallel_residual else 2
        norm_outputs = 0 if recompute == "selective" else 2
        halves = self.attention.saved_bytes(share, recompute)
        halves += self.feed_forward.saved_bytes(share, recompute)
        return (norm_inputs + norm_outputs) * hidden + halves

    def supports_tp(self, tp: int) -> bool:
        return self.attention.supports_tp(tp) and self.feed_forward.supports_tp(tp)

    def supports_ep(self, ep: int) -> bool:
        return self.feed_forward.supports_ep(ep)

    def _outside_feed_forward(self, tp: int) -> int:
        norms = 2 * norm_parameters(self.norm, self.hidden_size)
        return norms + self.attention.parameters_per_rank(tp)
