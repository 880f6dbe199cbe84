"""Eight bits in blocks of 256 with one fp32 scale each: 1.016 bytes per element.

Layout: the scales of all blocks, then the integers. The scale is max|block| / 127, rounding is half
to even. A block that holds NaN or infinity gets a NaN scale, so every rank decodes NaN there
rather than a plausible number; a block below 2^-100 gets zero and waits in the residual (error
feedback: Seide et al. 2014, Karimireddy et al. 2019).
"""

from __future__ import annotations

import torch

from pluribus.comm.codecs.base import Codec
from pluribus.comm.native.build import kernel

BLOCK = 256
LEVELS = 127.0
TINY = 2.0**-100  # TINY in kernel.c: below it the scale would be denormal


class Int8(Codec):
    """See the module."""

    name = "int8"
    block = BLOCK
    feeds_back = True
    gigabytes_per_s = 9.0  # bench/codecs.py, 64 MiB, one core of an EPYC 9005, C kernel

    def num_bytes(self, num_elements: int) -> int:
        return 4 * num_blocks(num_elements) + num_elements

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        """As `Codec.encode`; in a block that is not finite the residual stays as it was."""
        loaded = kernel()
        if loaded is None:
            encode_torch(values, out, residual)
            return
        n, start = values.numel(), out.data_ptr()
        loaded.pluribus_int8_encode(
            values.data_ptr(), residual.data_ptr() if residual is not None else None,
            start, start + 4 * num_blocks(n), n,
        )  # fmt: skip

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        loaded = kernel()
        if loaded is None:
            decode_torch(coded, out, add)
            return
        n, start = out.numel(), coded.data_ptr()
        loaded.pluribus_int8_decode(start, start + 4 * num_blocks(n), out.data_ptr(), n, add)

    def decode_sum(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        loaded = kernel()
        if loaded is None:
            super().decode_sum(one, other, out)
            return
        n, first, second = out.numel(), one.data_ptr(), other.data_ptr()
        scales = 4 * num_blocks(n)
        loaded.pluribus_int8_decode_sum(
            first, first + scales, second, second + scales, out.data_ptr(), n
        )


def encode_torch(values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None) -> None:
    """`Int8.encode` without a compiler; the same bits."""
    n, blocks = values.numel(), num_blocks(values.numel())
    v = padded(values if residual is None else values + residual, blocks)
    top = v.abs().amax(dim=1)
    scale, inverse = scales(top, LEVELS)
    q = torch.where(inverse[:, None] > 0, torch.round(v * inverse[:, None]), 0.0)
    out[: 4 * blocks].copy_(scale.view(torch.uint8))
    out[4 * blocks :].copy_(q.to(torch.int8).view(-1)[:n].view(torch.uint8))
    if residual is not None:
        keep(residual, v - q * scale[:, None], top)


def decode_torch(coded: torch.Tensor, out: torch.Tensor, add: bool) -> None:
    """`Int8.decode` without a compiler; the same bits."""
    n, blocks = out.numel(), num_blocks(out.numel())
    scale = read_scales(coded, blocks)
    q = coded[4 * blocks :].view(torch.int8).to(torch.float32)
    put(out, (padded(q, blocks) * scale[:, None]).view(-1)[:n], add)


def num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK)


def put(out: torch.Tensor, values: torch.Tensor, add: bool) -> None:
    if add:
        out.add_(values)
    else:
        out.copy_(values)


def padded(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """(blocks, 256), zeros behind the end of ``x``."""
    if x.numel() == blocks * BLOCK:
        return x.view(blocks, BLOCK)
    out = x.new_zeros(blocks * BLOCK)
    out[: x.numel()] = x
    return out.view(blocks, BLOCK)


def scales(top: torch.Tensor, levels: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Per block, from its largest magnitude, the scale and what to multiply by before rounding.

    The second is 0 where nothing is to be sent: NaN scale for what is not finite, 0 for what is
    too small.
    """
    finite = torch.isfinite(top)
    usable = finite & (top >= TINY)
    full = torch.full_like(top, levels)  # number / tensor would be a reciprocal and a product
    scale = torch.where(usable, top / full, torch.where(finite, 0.0, torch.nan))
    return scale, torch.where(usable, full / top, 0.0)


def read_scales(payload: torch.Tensor, blocks: int) -> torch.Tensor:
    """The scales at the head of a payload, which may lie at any address."""
    head = torch.empty(4 * blocks, dtype=torch.uint8)
    return head.copy_(payload[: 4 * blocks]).view(torch.float32)


def keep(residual: torch.Tensor, left: torch.Tensor, top: torch.Tensor) -> None:
    """Replaces ``residual`` by ``left`` (blocks, 256) except in blocks that are not finite."""
    kept = torch.where(torch.isfinite(top)[:, None], left, padded(residual, len(top)))
    residual.copy_(kept.view(-1)[: residual.numel()])
