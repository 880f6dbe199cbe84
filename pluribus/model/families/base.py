"""What a family hands to the Model, and what the Llama-like families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pluribus.model.attention import Attention, GroupedQueryAttention
from pluribus.model.block import Block
from pluribus.model.config import Config
from pluribus.model.embedding import Embedding
from pluribus.model.feed_forward import DenseFeedForward, FeedForward
from pluribus.model.head import Head
from pluribus.model.layer import Layer


@dataclass(frozen=True)
class Pieces:
    """The numbers of a model before it has a name.

    Attributes:
        hidden_size: width of the hidden state between layers.
        vocab_size: tokens.
        num_attention_heads: query heads of a block.
        max_sequence_length: positions it was made for.
        tied: whether the head uses the embedding's token table.
        layers: embedding, blocks, head.
    """

    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    max_sequence_length: int
    tied: bool
    layers: tuple[Layer, ...]


Family = Callable[[Config], Pieces]


def llama_like(
    config: Config,
    attention: Callable[[int], Attention],
    feed_forward: Callable[[int], FeedForward],
    *,
    max_sequence_length: int,
) -> Pieces:
    """RMSNorm before each half and Llama's weight names.

    Args:
        config: the keys; sizes of embedding and head are read here.
        attention: the first half of a block by its index.
        feed_forward: the second half of a block by its index.
        max_sequence_length: the family's default of ``max_position_embeddings``.
    """
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    tied = config.flag("tie_word_embeddings", False)
    blocks = (
        Block(f"model.layers.{i}", hidden, attention(i), feed_forward(i))
        for i in range(config.integer("num_hidden_layers"))
    )
    head = Head("lm_head", hidden, vocab, hidden, tied, "rms", other_prefixes=("model.norm",))
    return Pieces(
        hidden_size=hidden,
        vocab_size=vocab,
        num_attention_heads=config.integer("num_attention_heads"),
        max_sequence_length=config.integer("max_position_embeddings", default=max_sequence_length),
        tied=tied,
        layers=(Embedding("model.embed_tokens", hidden, vocab, hidden), *blocks, head),
    )


def rotary_attention(
    config: Config,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    window: int | None = None,
) -> GroupedQueryAttention:
    """Grouped-query attention with the keys that Llama, Mistral and Qwen share.

    Args:
        config: the keys.
        qkv_bias: biases on queries, keys and values.
        output_bias: bias on the output.
        qk_norm: norms over query and key heads.
        head_dim: the family's default of ``head_dim``; None for hidden size / heads.
        num_kv_heads: the family's default of ``num_key_value_heads``; None for all heads.
        window: tokens a query sees.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=num_kv_heads or heads)
    config.divided("num_attention_heads", heads, "num_key_value_heads", kv_heads)
    width = config.optional_integer("head_dim", default=head_dim)
    if width is None:
        width = config.divided("hidden_size", hidden, "num_attention_heads", heads)
    return GroupedQueryAttention(
        hidden, heads, kv_heads, width,
        qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm, window=window,
    )  # fmt: skip


def gated_feed_forward(config: Config, *, bias: bool = False) -> DenseFeedForward:
    """SwiGLU with ``intermediate_size`` columns."""
    hidden, width = config.integer("hidden_size"), config.integer("intermediate_size")
    return DenseFeedForward(hidden, width, bias=bias)


def whole_attention(
    config: Config,
    hidden: int,
    heads: int,
    *,
    heads_key: str,
    bias: bool = True,
    rotary: bool = False,
    fused: bool = True,
) -> GroupedQueryAttention:
    """Multi-head attention of the families before grouped queries: as many KV heads as heads."""
    width = config.divided("hidden_size", hidden, heads_key, heads)
    return GroupedQueryAttention(
        hidden, heads, heads, width,
        qkv_bias=bias, output_bias=bias, rotary=rotary, fused_qkv=fused,
    )  # fmt: skip


def top_k_of(config: Config, experts: int, *, default: int | None = None) -> int:
    """``num_experts_per_tok``, which may not exceed the number of experts.

    Raises:
        UnsupportedModelError: it does.
    """
    top_k = config.integer("num_experts_per_tok", default=default)
    if top_k > experts:
        raise config.error(
            "num_experts_per_tok",
            f"'num_experts_per_tok' {top_k} is more than the {experts} experts",
            "Mend one of the two numbers.",
        )
    return top_k
