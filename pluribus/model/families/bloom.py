"""BLOOM."""

from __future__ import annotations

from pluribus.model.block import Block
from pluribus.model.config import Config
from pluribus.model.embedding import Embedding
from pluribus.model.families.base import Pieces, whole_attention
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head


def bloom(config: Config) -> Pieces:
    """`BloomForCausalLM`: ALiBi (no position weights), a norm after the embedding, tied head."""
    hidden, vocab = config.integer("n_embed", "hidden_size"), config.integer("vocab_size")
    heads = config.integer("n_head", "num_attention_heads")
    attention = whole_attention(config, hidden, heads, heads_key="n_head")
    feed_forward = DenseFeedForward(hidden, 4 * hidden, "gelu", bias=True)
    tied = config.flag("tie_word_embeddings", True)
    blocks = (
        Block(f"transformer.h.{i}", hidden, attention, feed_forward, "layer")
        for i in range(config.integer("n_layer", "num_hidden_layers"))
    )
    embedding = Embedding(
        "transformer.word_embeddings", hidden, vocab, hidden, norm="layer",
        other_prefixes=("transformer.word_embeddings_layernorm",),
    )  # fmt: skip
    head = Head("lm_head", hidden, vocab, hidden, tied, "layer", ("transformer.ln_f",))
    # ALiBi has no longest sequence; 2048 is what BLOOM was trained with.
    length = config.integer("seq_length", default=2048)
    return Pieces(hidden, vocab, heads, length, tied, (embedding, *blocks, head))
