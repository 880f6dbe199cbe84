"""Mistral and Mixtral."""

from __future__ import annotations

from pluribus.model.config import Config
from pluribus.model.experts import Experts
from pluribus.model.families.base import (
    Pieces,
    gated_feed_forward,
    llama_like,
    rotary_attention,
    top_k_of,
)

_MAX_SEQUENCE_LENGTH = 4096 * 32


def mistral(config: Config) -> Pieces:
    """`MistralForCausalLM`: Llama with a sliding window of 4096 unless the key is null."""
    absent = "sliding_window" not in config.values
    window = 4096 if absent else config.optional_integer("sliding_window")
    attention = rotary_attention(config, num_kv_heads=8, window=window)
    feed_forward = gated_feed_forward(config)
    return llama_like(
        config, lambda _: attention, lambda _: feed_forward,
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )  # fmt: skip


def mixtral(config: Config) -> Pieces:
    """`MixtralForCausalLM`: Mistral with experts in every block."""
    experts = config.integer("num_local_experts", "num_experts", default=8)
    attention = rotary_attention(
        config, num_kv_heads=8, window=config.optional_integer("sliding_window")
    )
    feed_forward = Experts(
        config.integer("hidden_size"),
        experts,
        top_k_of(config, experts, default=2),
        config.integer("intermediate_size"),
    )
    return llama_like(
        config, lambda _: attention, lambda _: feed_forward,
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )  # fmt: skip
