"""Only the blocks of 256 that hold something: exact, and as long as there is something to say.

After OmniReduce (Fei et al. 2021), which sends the non-zero blocks of sparse gradients (embeddings,
experts that saw no token). Layout: one bit per block, then the float32 of the blocks whose bit is
set. Zeros of either sign arrive as +0.
"""

from __future__ import annotations

import numpy as np
import torch

from pluribus.comm.codecs.base import Codec

BLOCK = 256


class Sparse(Codec):
    """See the module."""

    name = "sparse"
    block = BLOCK
    feeds_back = False
    exact = True
    varies = True
    gigabytes_per_s = 2.0  # bench/codecs.py, 64 MiB, one core of an EPYC 9005

    def num_bytes(self, num_elements: int) -> int:
        return _bitmap_bytes(num_elements) + 4 * num_elements

    def length(self, coded: torch.Tensor, num_elements: int) -> int:
        bits, last = _bits(coded, num_elements), -num_elements % BLOCK
        blocks = int(bits.sum())
        short = last if blocks and bits[-1] else 0
        return _bitmap_bytes(num_elements) + 4 * (blocks * BLOCK - short)

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        v = (values if residual is None else values + residual).numpy()
        whole, rest = _blocks(v)
        bits = np.append(whole.any(axis=1), rest.any(axis=1))
        into, head = out.numpy(), _bitmap_bytes(len(v))
        into[:head] = np.packbits(bits)
        said = whole[bits[: len(whole)]].reshape(-1).view(np.uint8)
        into[head : head + len(said)] = said
        if rest.size and bits[-1]:
            into[head + len(said) : head + len(said) + 4 * rest.size] = rest[0].view(np.uint8)
        if residual is not None:
            residual.zero_()

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        into, head = out.numpy(), _bitmap_bytes(out.numel())
        bits = _bits(coded, len(into))
        whole, rest = _blocks(into)
        if not add:
            into[:] = 0.0
        at = np.flatnonzero(bits[: len(whole)])
        stop = head + 4 * BLOCK * len(at)
        said = np.frombuffer(coded[head:stop].numpy().tobytes(), dtype=np.float32)
        whole[at] += said.reshape(-1, BLOCK)
        if rest.size and bits[-1]:
            said = coded[stop : stop + 4 * rest.size].numpy().tobytes()
            rest[0] += np.frombuffer(said, dtype=np.float32)


def _blocks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views [blocks, 256] and, of what is left over, [1, m] or [0, 0]."""
    whole = len(x) // BLOCK * BLOCK
    rest = x[whole:].reshape(1, -1) if len(x) > whole else x[:0].reshape(0, 0)
    return x[:whole].reshape(-1, BLOCK), rest


def _bits(coded: torch.Tensor, num_elements: int) -> np.ndarray:
    packed = coded[: _bitmap_bytes(num_elements)].numpy()
    return np.unpackbits(packed, count=-(-num_elements // BLOCK)).view(bool)


def _bitmap_bytes(num_elements: int) -> int:
    return -(-num_elements // (8 * BLOCK))
