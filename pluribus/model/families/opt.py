"""OPT and Galactica."""

from __future__ import annotations

from pluribus.model.block import Block
from pluribus.model.config import Config
from pluribus.model.embedding import Embedding
from pluribus.model.families.base import Pieces, whole_attention
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head
from pluribus.model.norm import Norm

_POSITION_OFFSET = 2  # rows 0 and 1 of OPT's position table are never used


def opt(config: Config) -> Pieces:
    """`OPTForCausalLM`: learned positions, ReLU, tied head.

    OPT-350M embeds in ``word_embed_proj_dim`` columns and projects in and out; with its norms
    after each half (``do_layer_norm_before`` false) it has no final norm.
    """
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    heads = config.integer("num_attention_heads")
    width = config.integer("word_embed_proj_dim", default=hidden)
    bias = config.flag("enable_bias", True)
    norm: Norm = "layer" if config.flag("layer_norm_elementwise_affine", True) else "plain"
    removed = config.flag("_remove_final_layer_norm", False)
    final_norm = config.flag("do_layer_norm_before", True) and not removed
    attention = whole_attention(
        config, hidden, heads, heads_key="num_attention_heads", bias=bias, fused=False
    )
    activation = "relu" if config.values.get("activation_function", "relu") == "relu" else "gelu"
    feed_forward = DenseFeedForward(hidden, config.integer("ffn_dim"), activation, bias=bias)
    positions = config.integer("max_position_embeddings", default=2048)
    tied = config.flag("tie_word_embeddings", True)
    stem = "model.decoder"
    blocks = (
        Block(f"{stem}.layers.{i}", hidden, attention, feed_forward, norm)
        for i in range(config.integer("num_hidden_layers"))
    )
    embedding = Embedding(
        f"{stem}.embed_tokens", hidden, vocab, width, positions + _POSITION_OFFSET,
        other_prefixes=(f"{stem}.embed_positions", f"{stem}.project_in"),
    )  # fmt: skip
    others = (f"{stem}.final_layer_norm", f"{stem}.project_out")
    head = Head("lm_head", hidden, vocab, width, tied, norm if final_norm else None, others)
    return Pieces(hidden, vocab, heads, positions, tied, (embedding, *blocks, head))
