"""Llama 1, 2, 3 and what follows their recipe under the same model_type."""

from __future__ import annotations

from pluribus.model.config import Config
from pluribus.model.families.base import Pieces, gated_feed_forward, llama_like, rotary_attention


def llama(config: Config) -> Pieces:
    """`LlamaForCausalLM`: SwiGLU, grouped queries, biases only where the config asks."""
    bias = config.flag("attention_bias", False)
    attention = rotary_attention(config, qkv_bias=bias, output_bias=bias)
    feed_forward = gated_feed_forward(config, bias=config.flag("mlp_bias", False))
    return llama_like(config, lambda _: attention, lambda _: feed_forward, max_sequence_length=2048)
