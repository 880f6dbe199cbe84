"""GPT-NeoX and Pythia."""

from __future__ import annotations

from pluribus.model.block import Block
from pluribus.model.config import Config
from pluribus.model.embedding import Embedding
from pluribus.model.families.base import Pieces, whole_attention
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.head import Head


def gpt_neox(config: Config) -> Pieces:
    """`GPTNeoXForCausalLM`: rotary, LayerNorm, biases, both halves on the block's input.

    The head's matrix is named as in checkpoints, ``embed_out``; transformers 5 calls it
    ``lm_head`` in memory.
    """
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    heads = config.integer("num_attention_heads")
    bias = config.flag("attention_bias", True)
    attention = whole_attention(
        config, hidden, heads, heads_key="num_attention_heads", bias=bias, rotary=True
    )
    feed_forward = DenseFeedForward(hidden, config.integer("intermediate_size"), "gelu", bias=True)
    parallel = config.flag("use_parallel_residual", True)
    tied = config.flag("tie_word_embeddings", False)
    blocks = (
        Block(f"gpt_neox.layers.{i}", hidden, attention, feed_forward, "layer", parallel)
        for i in range(config.integer("num_hidden_layers"))
    )
    embedding = Embedding("gpt_neox.embed_in", hidden, vocab, hidden)
    norm = "gpt_neox.final_layer_norm"
    head = Head("embed_out", hidden, vocab, hidden, tied, "layer", (norm,))
    positions = config.integer("max_position_embeddings", default=2048)
    return Pieces(hidden, vocab, heads, positions, tied, (embedding, *blocks, head))
