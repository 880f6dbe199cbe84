"""One operator of a layer's forward pass: its FLOPs, its memory traffic and its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Operator:
    """What one rank executes for one operator in the forward of one micro-batch.

    Attributes:
        name: the weight or the step it stands for, e.g. ``q_proj`` or ``attention``.
        kind: which efficiency curve it follows.
        flops: floating-point operations of all `count` instances. A multiply-add is two.
            Operators bound by memory (elementwise, lookup) count none, as in every published
            model-FLOPs convention.
        bytes: memory read and written by all `count` instances when each operand moves once.
        m: rows of one matrix product; attention: queries of one head.
        n: columns of one matrix product; attention: keys of one head.
        k: summed dimension; attention: width of the query heads.
        count: equal instances: matrices that share their input, experts, or batch x heads.
        kv_count: attention: batch x key-value heads.
    """

    name: str
    kind: Literal["gemm", "grouped_gemm", "attention", "elementwise", "lookup"]
    flops: float
    bytes: float
    m: int = 0
    n: int = 0
    k: int = 0
    count: int = 1
    kv_count: int = 0


def gemm(
    name: str, m: int, n: int, k: int, bytes_per_element: float, *, count: int = 1
) -> Operator:
    """``count`` products of an (m, k) activation with (k, n) weights."""
    traffic = bytes_per_element * count * (m * k + k * n + m * n)
    return Operator(name, "gemm", 2.0 * m * n * k * count, traffic, m, n, k, count)


def grouped_gemm(
    name: str, rows: float, n: int, k: int, experts: int, bytes_per_element: float
) -> Operator:
    """``rows`` activations of width k spread evenly over the (k, n) weights of ``experts``.

    Weights of experts that no row can reach (fewer rows than experts) are not read.
    """
    traffic = bytes_per_element * (rows * (k + n) + min(experts, rows) * k * n)
    m = math.ceil(rows / experts)
    return Operator(name, "grouped_gemm", 2.0 * rows * n * k, traffic, m, n, k, experts)


def elementwise(name: str, elements: float, bytes_per_element: float) -> Operator:
    """A step that reads and writes ``elements`` values in all and multiplies no matrices."""
    return Operator(name, "elementwise", 0.0, elements * bytes_per_element)
