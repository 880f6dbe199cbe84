"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pluribus.nn.config import DecoderConfig


def inverse_frequencies(config: DecoderConfig) -> Tensor:
    """Radians per position of each pair of channels: ``theta^(-2i / head_dim)``.

    Llama 3.1 divides the slow ones by ``factor``, keeps the fast ones and interpolates between,
    as Hugging Face's ``rope_type`` "llama3" does.

    Returns:
        fp32 tensor of shape [head_dim / 2], on the CPU.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    rope = config.llama3_rope
    if rope is None:
        return frequencies
    context = rope.original_max_position_embeddings
    longest, shortest = context / rope.low_freq_factor, context / rope.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    share = (context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (wavelengths >= shortest) & (wavelengths <= longest)
    blend = (1 - share) * stretched / rope.factor + share * stretched
    return torch.where(between, blend, stretched)


class RotaryEmbedding(nn.Module):
    """Rotates q and k. One object is shared by every block of a stage, and so is its table.

    The table of cosines and sines is made when first needed, on the CPU, so that unlike chips
    use the same numbers.
    """

    cos: Tensor | None
    sin: Tensor | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotates in fp32; q and k are [batch, heads, tokens, head_dim], and so are the results."""
        cos, sin = self._table(q.shape[-2], q.device)
        return _rotate(q, cos, sin), _rotate(k, cos, sin)

    def _table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self.cos
        # `module.to(dtype)` casts buffers, and a rounded table would cost accuracy unnoticed.
        if (
            table is None
            or len(table) < length
            or table.device != device
            or table.dtype != torch.float32
        ):
            positions = torch.arange(length, dtype=torch.float32)
            angles = torch.outer(positions, inverse_frequencies(self.config))
            self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)
        assert self.cos is not None
        assert self.sin is not None
        return self.cos[:length], self.sin[:length]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Hugging Face checkpoints pair channel i with i + head_dim/2, not with its neighbour.
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
