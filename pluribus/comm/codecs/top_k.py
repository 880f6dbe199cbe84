"""Only the largest elements, with their places; the others wait in the residual. Opt-in.

Without error feedback over many steps this loses most of the gradient (one step of 1 %: 96 % of
the norm); with it, see Stich et al. 2018, "Sparsified SGD with memory".
"""

from __future__ import annotations

import math

import torch

from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.plain import as_type


class TopK(Codec):
    """The ``share`` of elements that are largest in magnitude: int32 places, then fp32 values.

    NaN counts as largest, so it is sent and never hidden.
    """

    name = "top-k"
    block = 1
    feeds_back = True
    gigabytes_per_s = 0.15  # bench/codecs.py, 64 MiB, one core of an EPYC 9005

    def __init__(self, share: float = 0.01) -> None:
        assert 0.0 < share <= 1.0
        self._share = share

    def _count(self, num_elements: int) -> int:
        return min(num_elements, math.ceil(self._share * num_elements))

    def num_bytes(self, num_elements: int) -> int:
        return 8 * self._count(num_elements)

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        v = values if residual is None else values + residual
        k = self._count(v.numel())
        places = torch.topk(v.abs(), k, sorted=False).indices
        out[: 4 * k].copy_(places.to(torch.int32).view(torch.uint8))
        out[4 * k :].copy_(v[places].view(torch.uint8))
        if residual is not None:
            residual.copy_(torch.where(torch.isfinite(v), v, residual))
            residual[places] = 0.0

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        k = self._count(out.numel())
        places = as_type(coded[: 4 * k], torch.int32).to(torch.int64)
        values = as_type(coded[4 * k :], torch.float32)
        if not add:
            out.zero_()
        out[places] += values  # every place once: the sum has one order
