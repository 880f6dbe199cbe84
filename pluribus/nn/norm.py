"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast q and k arrive in 16 bits while the weight is fp32; unlike dtypes would
        # leave the fused kernel.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
