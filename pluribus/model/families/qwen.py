"""Qwen 1.5 to 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Callable

from pluribus.model.config import Config
from pluribus.model.experts import Experts
from pluribus.model.families.base import (
    Pieces,
    gated_feed_forward,
    llama_like,
    rotary_attention,
    top_k_of,
)
from pluribus.model.feed_forward import DenseFeedForward, FeedForward

_MAX_SEQUENCE_LENGTH = 32768


def qwen2(config: Config) -> Pieces:
    """`Qwen2ForCausalLM` (Qwen 1.5, 2, 2.5): Llama with biases on queries, keys and values."""
    feed_forward = gated_feed_forward(config)
    return llama_like(
        config,
        lambda i: rotary_attention(
            config, qkv_bias=True, num_kv_heads=32, window=_window(config, i)
        ),
        lambda _: feed_forward,
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )


def qwen3(config: Config) -> Pieces:
    """`Qwen3ForCausalLM`: norms over query and key heads, heads of 128, no biases by default."""
    bias = config.flag("attention_bias", False)
    feed_forward = gated_feed_forward(config)
    return llama_like(
        config,
        lambda i: rotary_attention(
            config, qkv_bias=bias, output_bias=bias, qk_norm=True, head_dim=128, num_kv_heads=32,
            window=_window(config, i),
        ),
        lambda _: feed_forward,
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )  # fmt: skip


def qwen2_moe(config: Config) -> Pieces:
    """`Qwen2MoeForCausalLM`: routed experts and one gated shared expert."""
    hidden = config.integer("hidden_size")
    shared = config.integer("shared_expert_intermediate_size", default=5632)
    experts = _experts(
        config, num_experts=60, top_k=4, width=1408, shared=DenseFeedForward(hidden, shared)
    )
    bias = config.flag("qkv_bias", True)
    return llama_like(
        config,
        lambda i: rotary_attention(
            config, qkv_bias=bias, num_kv_heads=16, window=_window(config, i)
        ),
        _second_halves(config, experts),
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )


def qwen3_moe(config: Config) -> Pieces:
    """`Qwen3MoeForCausalLM`: Qwen3 with routed experts and none shared."""
    bias = config.flag("attention_bias", False)
    experts = _experts(config, num_experts=128, top_k=8, width=768, shared=None)
    return llama_like(
        config,
        lambda i: rotary_attention(
            config, qkv_bias=bias, output_bias=bias, qk_norm=True, num_kv_heads=4,
            window=_window(config, i),
        ),
        _second_halves(config, experts),
        max_sequence_length=_MAX_SEQUENCE_LENGTH,
    )  # fmt: skip


def _experts(
    config: Config, *, num_experts: int, top_k: int, width: int, shared: DenseFeedForward | None
) -> Experts:
    experts = config.integer("num_experts", "num_local_experts", default=num_experts)
    return Experts(
        config.integer("hidden_size"),
        experts,
        top_k_of(config, experts, default=top_k),
        config.integer("moe_intermediate_size", default=width),
        shared=shared,
        shared_gate=shared is not None,
    )


def _second_halves(config: Config, experts: Experts) -> Callable[[int], FeedForward]:
    """Experts in every ``decoder_sparse_step``-th block that ``mlp_only_layers`` does not name."""
    dense_blocks = config.integers("mlp_only_layers")
    step = config.integer("decoder_sparse_step", default=1)

    def of(block: int) -> FeedForward:
        sparse = block not in dense_blocks and (block + 1) % step == 0
        return experts if sparse else gated_feed_forward(config)

    return of


def _window(config: Config, block: int) -> int | None:
    """A sliding window, when switched on, from block ``max_window_layers`` on."""
    if not config.flag("use_sliding_window", False):
        return None
    if block < config.integer("max_window_layers", default=28, minimum=0):
        return None
    return config.optional_integer("sliding_window", default=4096)
