"""DeepSeek V2 and V3 (and Moonlight, Kimi K2, which use their classes)."""

from __future__ import annotations

from pluribus.model.config import Config
from pluribus.model.experts import Experts
from pluribus.model.families.base import Pieces, gated_feed_forward, llama_like, top_k_of
from pluribus.model.feed_forward import DenseFeedForward, FeedForward
from pluribus.model.latent_attention import LatentAttention


def deepseek_v2(config: Config) -> Pieces:
    """`DeepseekV2ForCausalLM`: latent attention, routed and shared experts."""
    return _deepseek(
        config, experts=64, shared=2, width=1407, top_k=None, dense=0, max_sequence_length=2048
    )


def deepseek_v3(config: Config) -> Pieces:
    """`DeepseekV3ForCausalLM`.

    The multi-token-prediction modules (``num_nextn_predict_layers``) are not counted: they are
    not part of the model that predicts the next token. The routers' ``e_score_correction_bias``
    is a buffer without gradient and is not counted either (14,848 numbers in DeepSeek-V3).
    """
    return _deepseek(
        config, experts=256, shared=1, width=2048, top_k=8, dense=3, max_sequence_length=4096
    )


def _deepseek(
    config: Config,
    *,
    experts: int,
    shared: int,
    width: int,
    top_k: int | None,
    dense: int,
    max_sequence_length: int,
) -> Pieces:
    """Both versions; the arguments are the defaults in which they differ."""
    hidden = config.integer("hidden_size")
    attention = LatentAttention(
        hidden_size=hidden,
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=_query_rank(config),
        kv_lora_rank=config.integer("kv_lora_rank", default=512),
        qk_nope_head_dim=config.integer("qk_nope_head_dim", default=128),
        qk_rope_head_dim=config.integer("qk_rope_head_dim", default=64),
        v_head_dim=config.integer("v_head_dim", default=128),
        bias=config.flag("attention_bias", False),
    )
    num_experts = config.integer("n_routed_experts", "num_local_experts", default=experts)
    width = config.integer("moe_intermediate_size", default=width)
    routed = Experts(
        hidden,
        num_experts,
        top_k_of(config, num_experts, default=top_k),
        width,
        shared=_shared(config, hidden, width, shared),
    )
    first = config.integer("first_k_dense_replace", default=dense, minimum=0)
    every = config.integer("moe_layer_freq", default=1)
    bias = config.flag("mlp_bias", False)

    def second_half(block: int) -> FeedForward:
        sparse = block >= first and block % every == 0
        return routed if sparse else gated_feed_forward(config, bias=bias)

    return llama_like(
        config, lambda _: attention, second_half, max_sequence_length=max_sequence_length
    )


def _query_rank(config: Config) -> int | None:
    """1536 by default; null, which V2-Lite writes, is a full query projection."""
    absent = "q_lora_rank" not in config.values
    return 1536 if absent else config.optional_integer("q_lora_rank")


def _shared(config: Config, hidden: int, width: int, default: int) -> DenseFeedForward | None:
    """The shared experts, which are one network as wide as all of them."""
    if "n_shared_experts" in config.values and config.values["n_shared_experts"] is None:
        return None
    count = config.integer("n_shared_experts", default=default, minimum=0)
    bias = config.flag("mlp_bias", False)
    return DenseFeedForward(hidden, count * width, bias=bias) if count else None
