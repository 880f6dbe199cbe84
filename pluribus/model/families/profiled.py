"""A model that only a profile knows: sizes of its layers instead of its architecture."""

from __future__ import annotations

from pluribus.model.bare import BareLayer
from pluribus.model.config import Config
from pluribus.model.families.base import Pieces


def profiled(config: Config) -> Pieces:
    """What `pluribus profile --import` writes for a model without a Hugging Face config.

    Keys: ``hidden_size``, ``vocab_size``, ``layer_parameters`` (embedding, blocks, head),
    ``tensor_parallel_degrees`` (those it was measured at) and ``max_position_embeddings``. It can
    be planned and predicted with its profile; there is nothing of it to train.
    """
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    positions = config.integer("max_position_embeddings", default=2048)
    sizes = config.integers("layer_parameters")
    degrees = config.integers("tensor_parallel_degrees") or (1,)
    if len(sizes) < 3 or min(sizes) < 0:
        raise config.error(
            "layer_parameters", f"'layer_parameters' is {list(sizes)}",
            "List the parameters of the embedding, of each block and of the head.",
        )  # fmt: skip
    blocks = (
        BareLayer(f"layers.{i}", hidden, "dense", size, degrees)
        for i, size in enumerate(sizes[1:-1])
    )
    embedding = BareLayer("embedding", hidden, "embedding", sizes[0], degrees)
    head = BareLayer("head", hidden, "head", sizes[-1], degrees, vocab)
    heads = max(degrees)
    return Pieces(hidden, vocab, heads, positions, False, (embedding, *blocks, head))
