"""Adding up chunks: what each reduction does to each dtype, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pluribus.comm.errors import CollectiveError

Op = dist.ReduceOp.RedOpType

# numpy adds in the calling thread; torch would wake a pool of threads per chunk.
_NUMPY = {
    torch.float32: np.float32, torch.float64: np.float64, torch.int8: np.int8,
    torch.uint8: np.uint8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64,
    torch.uint16: np.uint16, torch.uint32: np.uint32, torch.uint64: np.uint64,
}  # fmt: skip
_UFUNCS: dict[Op, np.ufunc] = {
    Op.SUM: np.add, Op.AVG: np.add, Op.PREMUL_SUM: np.add, Op.PRODUCT: np.multiply,
    Op.MAX: np.maximum, Op.MIN: np.minimum, Op.BAND: np.bitwise_and, Op.BOR: np.bitwise_or,
    Op.BXOR: np.bitwise_xor,
}  # fmt: skip
_BOOLEAN = {
    Op.SUM: np.bitwise_or, Op.MAX: np.bitwise_or, Op.BOR: np.bitwise_or,
    Op.PRODUCT: np.bitwise_and, Op.MIN: np.bitwise_and, Op.BAND: np.bitwise_and,
    Op.BXOR: np.bitwise_xor,
}  # fmt: skip
_TORCH: dict[Op, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Op.SUM: torch.add, Op.AVG: torch.add, Op.PREMUL_SUM: torch.add, Op.PRODUCT: torch.mul,
    Op.MAX: torch.maximum, Op.MIN: torch.minimum,
}  # fmt: skip
_LINEAR = (Op.SUM, Op.AVG, Op.PREMUL_SUM)


@dataclass(frozen=True, slots=True)
class Reduction:
    """How two chunks of one dtype become one.

    Attributes:
        combine: (target, source): target op= source.
        finish: (target, members): ends the reduction; None where nothing is to be done.
    """

    combine: Callable[[torch.Tensor, torch.Tensor], None]
    finish: Callable[[torch.Tensor, int], None] | None = None


def reduction(op: Op, dtype: torch.dtype) -> Reduction:
    """The reduction of an op on tensors of a dtype.

    Raises:
        CollectiveError: they do not go together (the bits of a float, the average of booleans).
    """
    if dtype is torch.bool:
        if op not in _BOOLEAN:
            raise CollectiveError(f"{op.name} is not defined on booleans")
        return Reduction(_with_numpy(_BOOLEAN[op]))
    whole = not dtype.is_floating_point and not dtype.is_complex
    if op in (Op.BAND, Op.BOR, Op.BXOR) and not whole:
        raise CollectiveError(f"{op.name} is not defined on {dtype}")
    if dtype.is_complex and op not in _LINEAR:
        raise CollectiveError(f"{op.name} is not defined on {dtype}")
    finish = (_divide_whole if whole else _divide) if op == Op.AVG else None
    if dtype in _NUMPY:
        return Reduction(_with_numpy(_UFUNCS[op]), finish)
    if dtype.itemsize == 1:  # 8-bit floats have no arithmetic of their own
        return Reduction(_in_float32(_TORCH[op]), _divide_in_float32 if finish else None)
    return Reduction(_with_torch(_TORCH[op]), finish)


def _with_numpy(function: np.ufunc) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def combine(target: torch.Tensor, source: torch.Tensor) -> None:
        into = target.numpy()
        function(into, source.numpy(), out=into)

    return combine


def _with_torch(
    function: Callable[..., torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def combine(target: torch.Tensor, source: torch.Tensor) -> None:
        function(target, source, out=target)

    return combine


def _in_float32(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def combine(target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(function(target.float(), source.float()))

    return combine


def _divide(target: torch.Tensor, members: int) -> None:
    target.div_(members)


def _divide_whole(target: torch.Tensor, members: int) -> None:
    if target.dtype.is_signed or target.dtype is torch.uint8:
        target.div_(members, rounding_mode="trunc")
    else:  # torch does not divide these
        values = target.numpy()
        np.floor_divide(values, members, out=values)


def _divide_in_float32(target: torch.Tensor, members: int) -> None:
    target.copy_(target.float() / members)
