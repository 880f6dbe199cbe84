"""Grouped-query causal self-attention (Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.nn.config import DecoderConfig
from pluribus.nn.norm import RMSNorm
from pluribus.nn.rope import RotaryEmbedding


class Attention(nn.Module):
    """q, k, v projections, optional norms of q and k, RoPE, causal attention, o projection."""

    def __init__(self, config: DecoderConfig, rope: RotaryEmbedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden = config.hidden_size
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=config.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = nn.Linear(q_size, hidden, bias=config.output_bias, dtype=dtype)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype)
        self.qk_norm = config.qk_norm
        self.rope = rope

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        # The number of heads is read off the projection: it is smaller where the matrix is shared.
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.rope(q.transpose(1, 2), k.transpose(1, 2))
        group = q.shape[1] // k.shape[1]
        if group > 1 and q.dtype == torch.float32:
            # torch's GPU kernels that know grouped heads compute in 16 bits only; in fp32 they
            # give way to one that stores all scores. Repeated heads stay on a fused kernel.
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1]
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))
