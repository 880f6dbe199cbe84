"""GPT-2."""

from __future__ import annotations

from pluribus.model.block import Block
from pluribus.model.config import Config
from pluribus.model.embedding import Embedding
from pluribus.model.families.base import Pieces, whole_attention
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head


def gpt2(config: Config) -> Pieces:
    """`GPT2LMHeadModel`: learned positions, LayerNorm, biases, tied head."""
    hidden, vocab = config.integer("n_embd", "hidden_size"), config.integer("vocab_size")
    heads = config.integer("n_head", "num_attention_heads")
    positions = config.integer("n_positions", "max_position_embeddings", default=1024)
    attention = whole_attention(config, hidden, heads, heads_key="n_head")
    width = config.integer("n_inner", default=4 * hidden)
    feed_forward = DenseFeedForward(hidden, width, "gelu", bias=True)
    tied = config.flag("tie_word_embeddings", True)
    blocks = (
        Block(f"transformer.h.{i}", hidden, attention, feed_forward, "layer")
        for i in range(config.integer("n_layer", "num_hidden_layers"))
    )
    embedding = Embedding(
        "transformer.wte", hidden, vocab, hidden, positions, other_prefixes=("transformer.wpe",)
    )
    head = Head("lm_head", hidden, vocab, hidden, tied, "layer", ("transformer.ln_f",))
    return Pieces(hidden, vocab, heads, positions, tied, (embedding, *blocks, head))
