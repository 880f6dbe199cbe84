"""Four bits after a random rotation, blocks of 256 with one fp32 scale: 0.516 bytes per element.

A few large gradients would waste the sixteen levels of their whole block. Random signs and a
Walsh-Hadamard transform spread them over the block first (Suresh et al. 2017; DRIVE, Vargaftik et
al. 2021). Layout: scales, then 128 bytes per block whose low halves are elements 0-127 of the
rotated block and whose high halves are elements 128-255. The signs follow from a seed, which
both ends must share; the last block is filled up with zeros.
"""

from __future__ import annotations

import torch

from pluribus.comm.codecs import int8
from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.int8 import BLOCK
from pluribus.comm.native.build import kernel

LEVELS = 7.0


class Int4(Codec):
    """See the module.

    Args:
        seed: of the signs; the same at both ends.
    """

    name = "int4"
    block = BLOCK
    feeds_back = True
    gigabytes_per_s = 2.0  # bench/codecs.py, 64 MiB, one core of an EPYC 9005, C kernel

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed & (1 << 64) - 1

    def num_bytes(self, num_elements: int) -> int:
        return (4 + BLOCK // 2) * int8.num_blocks(num_elements)

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        """As `Codec.encode`; in a block that is not finite the residual stays as it was."""
        loaded = kernel()
        if loaded is None:
            encode_torch(values, out, residual, self._seed)
            return
        n, start = values.numel(), out.data_ptr()
        loaded.pluribus_int4_encode(
            values.data_ptr(), residual.data_ptr() if residual is not None else None,
            start, start + 4 * int8.num_blocks(n), n, self._seed,
        )  # fmt: skip

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        loaded = kernel()
        if loaded is None:
            decode_torch(coded, out, add, self._seed)
            return
        n, start = out.numel(), coded.data_ptr()
        loaded.pluribus_int4_decode(
            start, start + 4 * int8.num_blocks(n), out.data_ptr(), n, self._seed, add
        )


def encode_torch(
    values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None, seed: int
) -> None:
    """`Int4.encode` without a compiler; the same bits."""
    n, blocks = values.numel(), int8.num_blocks(values.numel())
    v = int8.padded(values if residual is None else values + residual, blocks)
    y = _rotate(v * _signs(seed, blocks))
    top = y.abs().amax(dim=1)
    scale, inverse = int8.scales(top, LEVELS)
    scale = scale * (1.0 / BLOCK)  # of the two unnormalised rotations; a power of two, exact
    q = torch.where(inverse[:, None] > 0, torch.round(y * inverse[:, None]), 0.0)
    out[: 4 * blocks].copy_(scale.view(torch.uint8))
    codes = (q + 8).to(torch.uint8)
    packed = codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << 4
    out[4 * blocks :].copy_(packed.view(-1))
    if residual is not None:
        back = torch.empty(n)
        decode_torch(out, back, False, seed)
        int8.keep(residual, v - int8.padded(back, blocks), top)


def decode_torch(coded: torch.Tensor, out: torch.Tensor, add: bool, seed: int) -> None:
    """`Int4.decode` without a compiler; the same bits."""
    n, blocks = out.numel(), int8.num_blocks(out.numel())
    scale = int8.read_scales(coded, blocks)
    packed = coded[4 * blocks :].view(blocks, BLOCK // 2)
    q = torch.cat([packed & 15, packed >> 4], dim=1).to(torch.float32) - 8.0
    int8.put(out, (_rotate(q * scale[:, None]) * _signs(seed, blocks)).view(-1)[:n], add)


def _rotate(v: torch.Tensor) -> torch.Tensor:
    """Walsh-Hadamard of each row (blocks, 256), not normalised, halves before quarters."""
    width = BLOCK
    while width > 1:
        pairs = v.view(-1, 2, width // 2)
        v = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1)
        width //= 2
    return v.view(-1, BLOCK)


def _signs(seed: int, blocks: int) -> torch.Tensor:
    """(blocks, 256) of ±1: bit i of splitmix64 word w is the sign of element 64 w + i."""
    words = torch.arange(1, blocks * (BLOCK // 64) + 1, dtype=torch.int64)
    z = words * _signed(0x9E3779B97F4A7C15) + _signed(seed)  # int64 wraps around as uint64 does
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _right(z, 31)
    bits = (z[:, None] >> torch.arange(64)) & 1
    return (1 - 2 * bits).to(torch.float32).view(blocks, BLOCK)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _right(z: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift of int64."""
    return (z >> by) & ((1 << (64 - by)) - 1)
