"""A chunk as the product of two thin matrices (PowerSGD, Vogels et al. 2019). Opt-in.

Their algorithm 1 sums the factors of all workers; on a hop there is one sender, so this is its
rank-r approximation of one matrix: the chunk, folded as square as it goes. Instead of a warm start
it iterates twice from a seeded start, so that the residual stays the only state.
"""

from __future__ import annotations

import torch

from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.int8 import put
from pluribus.comm.codecs.plain import as_type

ITERATIONS = 2


class PowerSgd(Codec):
    """Factors P (rows, r), then Q (columns, r), fp32. A chunk that is not finite decodes to NaN."""

    name = "power-sgd"
    block = 1
    feeds_back = True
    gigabytes_per_s = 0.1  # bench/codecs.py, 64 MiB, one core of an EPYC 9005

    def __init__(self, rank: int = 4, seed: int = 0) -> None:
        assert rank > 0
        self._rank = rank
        self._seed = seed

    def _shape(self, num_elements: int) -> tuple[int, int, int]:
        """(rows, columns, rank) for a chunk; the matrix may have zeros at its end."""
        columns = 1 << (max(num_elements, 1).bit_length() // 2)
        rows = -(-num_elements // columns)
        return rows, columns, min(self._rank, rows, columns)

    def num_bytes(self, num_elements: int) -> int:
        rows, columns, rank = self._shape(num_elements)
        return 4 * rank * (rows + columns)

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        v = values if residual is None else values + residual
        rows, columns, rank = self._shape(v.numel())
        if not torch.isfinite(v).all():
            out.copy_(torch.full((rank * (rows + columns),), torch.nan).view(torch.uint8))
            return
        matrix = torch.zeros(rows * columns)
        matrix[: v.numel()] = v
        matrix = matrix.view(rows, columns)
        generator = torch.Generator().manual_seed(self._seed)
        q = torch.randn(columns, rank, generator=generator)
        for _ in range(ITERATIONS):
            p = torch.linalg.qr(matrix @ q).Q
            q = matrix.T @ p
        out.copy_(torch.cat([p.reshape(-1), q.reshape(-1)]).view(torch.uint8))
        if residual is not None:
            back = torch.empty_like(v)
            self.decode(out, back)
            residual.copy_(v - back)

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        rows, columns, rank = self._shape(out.numel())
        factors = as_type(coded, torch.float32)
        p = factors[: rows * rank].view(rows, rank)
        q = factors[rows * rank :].view(columns, rank)
        # Not a matrix product: its order of summation differs between libraries and chips.
        product = p[:, 0, None] * q[None, :, 0]
        for r in range(1, rank):
            product = product + p[:, r, None] * q[None, :, r]
        put(out, product.view(-1)[: out.numel()], add)
