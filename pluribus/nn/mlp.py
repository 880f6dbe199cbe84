"""The gated feed-forward layer SwiGLU (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.nn.config import DecoderConfig


class MLP(nn.Module):
    """``down(silu(gate(x)) · up(x))``."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias, dtype=dtype)
        self.up_proj = nn.Linear(hidden, inner, bias=bias, dtype=dtype)
        self.down_proj = nn.Linear(inner, hidden, bias=bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
