"""Multi-head latent attention (MLA) of DeepSeek-V2 and V3."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.model.attention import Attention, attention_operator
from pluribus.model.layer import Recompute
from pluribus.model.operator import Operator, elementwise, gemm
from pluribus.model.share import Share


@dataclass(frozen=True)
class LatentAttention(Attention):
    """MLA as trained: latents are expanded to full heads (DeepSeek-V2, arXiv:2405.04434, 2.1).

    Down-projections are whole on every tp rank and run on the rank's part of the sequence, as
    in Megatron-LM; up-projections and the output are divided by heads.

    Attributes:
        hidden_size: width of its input and output.
        num_heads: heads; keys and values have as many.
        q_lora_rank: width of the query latent, None for a full query projection (V2-Lite).
        kv_lora_rank: width of the key-value latent.
        qk_nope_head_dim: width of a query or key head without position.
        qk_rope_head_dim: width of its rotary part; one key for all heads.
        v_head_dim: width of a value head.
        bias: biases on the down-projections and the output.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    bias: bool = False

    @property
    def signature(self) -> str:
        text = (
            f"a{self.num_heads}-mla-q{self.q_lora_rank or 0}-c{self.kv_lora_rank}"
            f"-n{self.qk_nope_head_dim}-r{self.qk_rope_head_dim}-v{self.v_head_dim}"
        )
        return text + ("-bias" if self.bias else "")

    @property
    def _qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def _kv_down(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim

    def parameters_per_rank(self, tp: int) -> int:
        heads, h = self._heads(tp), self.hidden_size
        down = h * self._kv_down + self.kv_lora_rank
        biases = self._kv_down + h
        queries = heads * self._qk_head_dim
        if self.q_lora_rank is None:
            up = h * queries
        else:
            down += h * self.q_lora_rank + self.q_lora_rank
            biases += self.q_lora_rank
            up = self.q_lora_rank * queries
        up += self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
        output = heads * self.v_head_dim * h
        return down + up + output + (biases if self.bias else 0)

    def operators(self, share: Share) -> tuple[Operator, ...]:
        heads, h = self._heads(share.tp), self.hidden_size
        t, part, e = share.tokens, share.shard_tokens, share.bytes_per_element
        queries, expanded = heads * self._qk_head_dim, self.qk_nope_head_dim + self.v_head_dim
        if self.q_lora_rank is None:
            steps = [gemm("q_proj", t, queries, h, e)]
        else:
            steps = [
                gemm("q_a_proj", part, self.q_lora_rank, h, e),
                elementwise("q_a_norm", 2 * part * self.q_lora_rank, e),
                gemm("q_b_proj", t, queries, self.q_lora_rank, e),
            ]
        rotated = heads * self.qk_rope_head_dim + self.qk_rope_head_dim
        steps += [
            gemm("kv_a_proj", part, self._kv_down, h, e),
            elementwise("kv_a_norm", 2 * part * self.kv_lora_rank, e),
            gemm("kv_b_proj", t, heads * expanded, self.kv_lora_rank, e),
            elementwise("rope", 2 * t * rotated, e),
            # Keys are joined from the expanded part and the shared rotary part.
            elementwise("join_keys", 2 * t * heads * self._qk_head_dim, e),
            attention_operator(share, heads, heads, self._qk_head_dim, self.v_head_dim),
            gemm("o_proj", t, h, heads * self.v_head_dim, e),
        ]
        return tuple(steps)

    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        # Latents before their norms, and after them unless the norms are recomputed.
        latents = self.kv_lora_rank + (self.q_lora_rank or 0)
        latents *= 1 if recompute == "selective" else 2
        # Queries and keys; values and the output.
        heads = self._heads(share.tp) * 2 * (self._qk_head_dim + self.v_head_dim)
        elements = share.shard_tokens * latents + share.tokens * heads
        return elements * share.bytes_per_element

    def supports_tp(self, tp: int) -> bool:
        return tp >= 1 and self.num_heads % tp == 0

    def _heads(self, tp: int) -> int:
        assert self.supports_tp(tp), f"tp={tp} does not divide {self.signature}"
        return self.num_heads // tp
