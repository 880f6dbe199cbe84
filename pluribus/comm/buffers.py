"""A caller's tensors as the flat memory that collectives work on, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pluribus.comm.devices.copies import Staging
from pluribus.comm.errors import CollectiveError


class Flat(NamedTuple):
    """Flat memory of some tensors.

    Attributes:
        back: copies results to the tensors; None where the memory is theirs.
        staging: where the memory is a chip's, its way to the engine.
    """

    data: torch.Tensor
    back: Callable[[], None] | None
    staging: Staging | None = None


def flatten(tensors: Sequence[torch.Tensor], read: bool, staging: Staging | None = None) -> Flat:
    """Tensors of one dtype, one behind the other.

    Args:
        read: whether their contents matter; else they are only written to.
        staging: of their chip; the flat memory is then the chip's too.

    A single contiguous tensor is used where it lies, if on the CPU or with staging. Tensors of
    other chips pass through host memory: reading waits for the chip's current stream, copying back
    is over when it returns.
    """
    if any(tensor.layout is not torch.strided for tensor in tensors):
        raise CollectiveError("only dense tensors are sent")
    real = [torch.view_as_real(t) if t.is_complex() else t for t in (x.detach() for x in tensors)]
    first = real[0]
    stays = staging is not None or first.device.type == "cpu"
    if len(real) == 1 and stays and first.is_contiguous():
        return Flat(first.view(-1), None, staging)
    sizes = [tensor.numel() for tensor in real]
    device = first.device if staging is not None else "cpu"
    data = torch.empty(sum(sizes), dtype=first.dtype, device=device)
    parts = data.split(sizes)
    if read:
        for part, tensor in zip(parts, real, strict=True):
            part.view(tensor.shape).copy_(tensor)

    def back() -> None:
        for part, tensor in zip(parts, real, strict=True):
            tensor.copy_(part.view(tensor.shape))

    return Flat(data, back, staging)


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two flat tensors share memory."""
    first, second = one.data_ptr(), other.data_ptr()
    size_one, size_other = one.numel() * one.element_size(), other.numel() * other.element_size()
    return first < second + size_other and second < first + size_one


def as_bytes(data: torch.Tensor) -> memoryview:
    """The memory of a flat tensor."""
    return memoryview(data.view(torch.uint8).numpy())


def elements(numel: int, tensor: torch.Tensor, rows: Sequence[int], size: int) -> list[int]:
    """Elements for or from each rank; rows are counted along the first dimension."""
    if not rows:
        if numel % size:
            raise CollectiveError(f"{numel} elements cannot be split over {size} ranks")
        return [numel // size] * size
    width = numel // tensor.shape[0] if tensor.shape[0] else 0
    return [count * width for count in rows]
