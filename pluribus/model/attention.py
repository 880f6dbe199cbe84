"""Attention: the contract of a block's first half, and multi-head / grouped-query attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pluribus.model.layer import Recompute
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share


class Attention(ABC):
    """The part of a block between its first norm and its first residual sum."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Its part of the block's signature."""

    @abstractmethod
    def parameters_per_rank(self, tp: int) -> int:
        """Parameters of the largest rank; with ``tp=1`` of the whole."""

    @abstractmethod
    def operators(self, share: Share) -> tuple[Operator, ...]:
        """One rank's forward."""

    @abstractmethod
    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        """Bytes kept for the backward beyond the input (the output of the norm)."""

    @abstractmethod
    def supports_tp(self, tp: int) -> bool:
        """Whether the heads divide over ``tp`` ranks."""


def attention_operator(
    share: Share, heads: int, kv_heads: int, qk_dim: int, v_dim: int, window: int | None = None
) -> Operator:
    """Scores and weighted values of ``heads`` heads of one rank, causal, as one flash kernel.

    A token sees itself and what is before it, at most ``window`` tokens: half of the square of
    the sequence without a window, FLOPs = 2 (qk_dim + v_dim) per pair. Under context
    parallelism a rank has 1/cp of the queries and of the pairs, and reads all keys.
    """
    s = share.sequence_length
    pairs = s * s / 2 if window is None or window >= s else window * s - window * window / 2
    pairs *= share.micro_batch / share.cp
    keys = share.micro_batch * s
    elements = share.tokens * heads * (qk_dim + v_dim) + keys * kv_heads * (qk_dim + v_dim)
    return Operator(
        "attention", "attention",
        flops=2.0 * pairs * heads * (qk_dim + v_dim), bytes=elements * share.bytes_per_element,
        m=-(-s // share.cp), n=s, k=qk_dim, count=share.micro_batch * heads,
        kv_count=share.micro_batch * kv_heads,
    )  # fmt: skip


@dataclass(frozen=True)
class GroupedQueryAttention(Attention):
    """Multi-head attention with as many or fewer key-value heads (Ainslie et al. 2023).

    Attributes:
        hidden_size: width of its input and output.
        num_heads: query heads.
        num_kv_heads: key-value heads; equal to `num_heads` for multi-head attention.
        head_dim: width of a head.
        qkv_bias: biases on the query, key and value projections.
        output_bias: bias on the output projection.
        qk_norm: RMSNorm over each query and key head (Qwen3).
        rotary: rotary position embedding.
        fused_qkv: one matrix for queries, keys and values (GPT-2, GPT-NeoX, BLOOM).
        window: tokens a query sees, None for all before it.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    rotary: bool = True
    fused_qkv: bool = False
    window: int | None = None

    @property
    def signature(self) -> str:
        parts = [f"a{self.num_heads}-k{self.num_kv_heads}"]
        if self.head_dim * self.num_heads != self.hidden_size:
            parts.append(f"d{self.head_dim}")
        if self.window is not None:
            parts.append(f"w{self.window}")
        flags = {
            "qkvbias": self.qkv_bias,
            "obias": self.output_bias,
            "qknorm": self.qk_norm,
            "norope": not self.rotary,
            "fused": self.fused_qkv,
        }
        return "-".join(parts + [word for word, present in flags.items() if present])

    def parameters_per_rank(self, tp: int) -> int:
        q, kv = self._widths(tp)
        columns = q + 2 * kv
        qkv = columns * self.hidden_size + (columns if self.qkv_bias else 0)
        output = q * self.hidden_size + (self.hidden_size if self.output_bias else 0)
        return qkv + output + (2 * self.head_dim if self.qk_norm else 0)

    def operators(self, share: Share) -> tuple[Operator, ...]:
        q, kv = self._widths(share.tp)
        h, t, e = self.hidden_size, share.tokens, share.bytes_per_element
        if self.fused_qkv:
            steps = [gemm("qkv_proj", t, q + 2 * kv, h, e)]
        else:
            steps = [gemm("q_proj", t, q, h, e), gemm("kv_proj", t, kv, h, e, count=2)]
        if self.qk_norm:
            steps.append(elementwise("qk_norm", 2 * t * (q + kv), e))
        if self.rotary:
            steps.append(elementwise("rope", 2 * t * (q + kv), e))
        d = self.head_dim
        steps.append(attention_operator(share, q // d, kv // d, d, d, self.window))
        steps.append(gemm("o_proj", t, h, q, e))
        return tuple(steps)

    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        q, kv = self._widths(share.tp)
        # Queries, keys, values and the output, which the output projection shares. The qk-norm
        # keeps its inputs; recomputing it needs those instead of the normalised heads.
        kept = 2 * q + 2 * kv
        if self.qk_norm and recompute == "none":
            kept += q + kv
        return share.tokens * kept * share.bytes_per_element

    def supports_tp(self, tp: int) -> bool:
        if tp < 1 or self.num_heads % tp:
            return False
        return self.num_kv_heads % tp == 0 or tp % self.num_kv_heads == 0

    def _widths(self, tp: int) -> tuple[int, int]:
        """Columns of one rank's queries, and of its keys (and of its values)."""
        assert self.supports_tp(tp), f"tp={tp} does not divide {self.signature}"
        kv_heads = max(1, self.num_kv_heads // tp)
        return self.num_heads // tp * self.head_dim, kv_heads * self.head_dim
