"""What a codec is: a shorter form of a chunk of numbers, for a slow hop.

Every rank that decodes the same bytes gets the same bits, on every chip and in every
implementation of the codec (C or torch): collectives stay bit-identical across ranks because all
of them add up *decoded* values, their own included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch


class Codec(ABC):
    """Encodes flat, contiguous CPU tensors of float32 (other dtypes are cast by the caller).

    Attributes:
        name: as in options and reports, e.g. ``"int8"``.
        block: elements; chunks are cut at multiples of it.
        feeds_back: whether what encoding loses should be added to the next value (error feedback).
        exact: whether nothing is lost; numbers of other types than float32 then go as they are.
        varies: whether the coded form may end before its `num_bytes`.
        gigabytes_per_s: of float32 input that one core encodes and decodes; the cost model's
            figure until it is measured.
    """

    name: ClassVar[str]
    block: ClassVar[int]
    feeds_back: ClassVar[bool]
    exact: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    gigabytes_per_s: ClassVar[float]

    @abstractmethod
    def num_bytes(self, num_elements: int) -> int:
        """Exact size of the encoded form, or the largest where it varies."""

    def length(self, coded: torch.Tensor, num_elements: int) -> int:
        """How many bytes of a coded form say all."""
        return self.num_bytes(num_elements)

    @abstractmethod
    def encode(
        self, values: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        """Encodes ``values``.

        Args:
            values: float32 [n], unchanged.
            out: uint8 [num_bytes(n)], overwritten.
            residual: float32 [n], what earlier calls lost: ``values + residual`` is encoded and
                the residual becomes what this call lost. None: no error feedback.
        """

    @abstractmethod
    def decode(self, coded: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        """Decodes into ``out`` (float32 [n]), or adds to it."""

    def decode_sum(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        """``out`` becomes the sum of what two coded forms stand for; as `decode` twice."""
        self.decode(one, out)
        self.decode(other, out, add=True)
