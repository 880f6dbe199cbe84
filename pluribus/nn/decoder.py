"""One decoder block: attention and MLP, each after a norm and beside a residual path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pluribus.nn.attention import Attention
from pluribus.nn.config import DecoderConfig
from pluribus.nn.mlp import MLP
from pluribus.nn.norm import RMSNorm
from pluribus.nn.rope import RotaryEmbedding


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: DecoderConfig, rope: RotaryEmbedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, rope, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """What Hugging Face names ``model.…``: the embedding, blocks and final norm a stage holds.

    It computes nothing itself; it gives the parameters their names. A tied stage that holds the
    head but not the embedding has `embed_tokens` too, as its output matrix.

    Args:
        blocks: half-open range of block numbers.
    """

    def __init__(
        self,
        config: DecoderConfig,
        blocks: range,
        *,
        with_embedding: bool,
        with_norm: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        rope = RotaryEmbedding(config)
        if with_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleDict({str(i): Block(config, rope, dtype) for i in blocks})
        if with_norm:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
