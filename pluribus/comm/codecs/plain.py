"""The codecs that need no blocks: the numbers themselves, and their upper halves (bfloat16)."""

from __future__ import annotations

import torch

from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.int8 import put


class Plain(Codec):
    """float32 as it is."""

    name = "none"
    block = 1
    feeds_back = False
    gigabytes_per_s = 11.0  # two copies; bench/codecs.py, 64 MiB, one core of an EPYC 9005

    def num_bytes(self, num_elements: int) -> int:
        return 4 * num_elements

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        v = values if residual is None else values + residual
        out.copy_(v.view(torch.uint8))
        if residual is not None:
            residual.zero_()

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        put(out, as_type(coded, torch.float32), add)


class BFloat16(Codec):
    """Rounded to nearest even; NaN and infinity stay what they are."""

    name = "bf16"
    block = 1
    feeds_back = False
    gigabytes_per_s = 10.0  # chunks of 1 MiB, one core of an EPYC 9005

    def num_bytes(self, num_elements: int) -> int:
        return 2 * num_elements

    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        v = values if residual is None else values + residual
        if out.storage_offset() % 2 == 0:
            short = out.view(torch.bfloat16).copy_(v)  # straight into place
        else:
            short = v.to(torch.bfloat16)
            out.copy_(short.view(torch.uint8))
        if residual is not None:
            left = v - short.to(torch.float32)
            residual.copy_(torch.where(torch.isfinite(left), left, residual))

    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        put(out, as_type(coded, torch.bfloat16), add)


def as_type(coded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes read as ``dtype``; copied if they do not lie as its elements must."""
    if coded.storage_offset() % dtype.itemsize:
        coded = coded.clone()
    return coded.view(dtype)
