"""StageModule: the part of a model that one pipeline stage holds.

The full model is the stage that holds every layer; there is no other model class.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pluribus.nn.config import DecoderConfig
from pluribus.nn.decoder import Trunk
from pluribus.nn.init import initialise
from pluribus.nn.loss import linear_cross_entropy


class StageModule(nn.Module):
    """Layers [first, end) of the list [embedding, block 0, …, block L-1, head].

    The stage's input is token ids [batch, tokens] (int64) when it holds the embedding, otherwise
    hidden states [batch, tokens, hidden].

    Parameters have exactly their Hugging Face names in the full model. With tied embeddings the
    head's matrix is ``model.embed_tokens.weight``: a stage with both ends holds it once, a stage
    with only the head holds a copy under that name, whose gradient must be summed with the
    embedding's.

    Args:
        layers: half-open range into the layer list.
        recompute: "full" keeps only each block's input and runs it again in backward
            (Chen et al. 2016, arXiv 1604.06174).
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: tuple[int, int],
        *,
        recompute: Literal["none", "full"] = "none",
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        first, end = layers
        assert 0 <= first < end <= config.num_stage_layers, f"no layers {layers}"
        self.config = config
        self.layers = layers
        self.recompute = recompute
        self.holds_embedding = first == 0
        self.holds_head = end == config.num_stage_layers
        tied_head = self.holds_head and config.tie_word_embeddings
        self.model = Trunk(
            config,
            range(max(first - 1, 0), min(end - 1, config.num_layers)),
            with_embedding=self.holds_embedding or tied_head,
            with_norm=self.holds_head,
            dtype=dtype,
        )
        if self.holds_head and not tied_head:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The hidden states [batch, tokens, hidden] after the stage's last block.

        Raises:
            UnsupportedModelError: the sequence is longer than the model's sliding window.
        """
        hidden = self.model.embed_tokens(x) if self.holds_embedding else x
        self.config.check_sequence_length(hidden.shape[1])
        for block in self.model.layers.values():
            if self.recompute == "full" and torch.is_grad_enabled():
                # Nothing in a block draws random numbers, so there is no state to keep.
                hidden = checkpoint(block, hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(hidden)
        return hidden

    def logits(self, x: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of the stage's input; the stage holds the head."""
        return F.linear(self.model.norm(self(x)), self._output_matrix)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The sum of the token cross entropies, in nats; the stage holds the head.

        Args:
            x: the stage's input.
            targets: [batch, tokens] of int64; -100 marks tokens that do not count.

        Returns:
            An fp32 scalar, to be divided by the number of tokens of the global batch.
        """
        hidden = self.model.norm(self(x))
        return linear_cross_entropy(hidden.flatten(0, 1), self._output_matrix, targets.flatten())

    @property
    def _output_matrix(self) -> Tensor:
        assert self.holds_head, f"layers {self.layers} do not include the head"
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight


class _NoDefaultInit(TorchFunctionMode):
    """Modules fill their parameters when made; on "meta" that does nothing but import seconds'
    worth of decompositions."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build_stage(
    config: DecoderConfig,
    layers: tuple[int, int],
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype,
    recompute: Literal["none", "full"] = "none",
) -> StageModule:
    """A stage with its initial weights; neither reads nor moves torch's global random state.

    Args:
        layers: half-open range into [embedding, block 0, …, block L-1, head].
        seed: with each parameter's name it determines the weights, whatever the split.
        device: on "meta" the parameters have shapes and no values.
        dtype: of the parameters.
    """
    with torch.device("meta"), _NoDefaultInit():
        stage = StageModule(config, layers, recompute=recompute, dtype=dtype)
    if torch.device(device).type == "meta":
        return stage
    stage.to_empty(device=device)
    initialise(stage, std=config.initializer_range, seed=seed)
    return stage
