"""Which operators to time for a job: those its layers run, and a few around them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from pluribus.model.layer import Layer
from pluribus.model.model import Model
from pluribus.model.operator import Operator
from pluribus.model.share import Share

Shaped = tuple[str, tuple[int, ...]]  # operator, shape: as in `spec.operator_table.SHAPES`

# Points between which other jobs on the chip, and serving, find neighbours.
_GRID_TOKENS = (1, 16, 128, 1024)
_GRID_WIDTHS = (256, 1024, 4096)
_GRID_BYTES = tuple(4**power for power in range(6, 14))  # 4 KiB to 64 MiB
_GRID_DECODE = tuple(product((1, 8), (128, 1024, 4096)))  # sequences, cached tokens


def job_shapes(
    model: Model,
    micro_batches: Iterable[int],
    sequence_length: int,
    tp_degrees: Iterable[int],
    element: float,
) -> tuple[Shaped, ...]:
    """The operators of one step, forward and backward, each shape once.

    Args:
        micro_batches: sizes in sequences.
        tp_degrees: those the model does not divide by are left out.
        element: bytes of an activation.
    """
    first: dict[str, Layer] = {}
    for layer in model.layers:
        first.setdefault(layer.signature, layer)
    found: dict[Shaped, None] = {}
    for tp, size in product(filter(model.supports_tp, tp_degrees), micro_batches):
        for layer in first.values():
            share = Share(size, sequence_length, tp, bytes_per_element=element)
            for operator in layer.operators(share):
                found.update(dict.fromkeys(_shapes(operator, size)))
    return tuple(found)


def decode_shapes(
    model: Model, batches: Sequence[int], contexts: Sequence[int], tp_degrees: Iterable[int]
) -> tuple[Shaped, ...]:
    """The operators of one token each of ``batches`` sequences with ``contexts`` cached tokens."""
    found: dict[Shaped, None] = {}
    for tp, size in product(filter(model.supports_tp, tp_degrees), batches):
        for layer in {layer.signature: layer for layer in model.layers}.values():
            for operator in layer.operators(Share(size, 1, tp)):
                for kind, shape in _shapes(operator, size):
                    if kind == "attention":
                        batch, heads, kv_heads, width, _ = shape
                        found.update(
                            (("decode_attention", (batch, heads, kv_heads, width, context)), None)
                            for context in contexts
                        )
                    else:
                        found[kind, shape] = None
    return tuple(found)


def grid_shapes(model: Model) -> tuple[Shaped, ...]:
    """A coarse grid of products and kernels, and decoding with the model's heads."""
    heads = next(
        (shape[1:4] for kind, shape in job_shapes(model, (1,), 1, (1,), 2) if kind == "attention"),
        None,
    )
    decode = [(b, *heads, context) for b, context in _GRID_DECODE] if heads else []
    return (
        *(("gemm", shape) for shape in product(_GRID_TOKENS, _GRID_WIDTHS, _GRID_WIDTHS)),
        *(("elementwise", (size,)) for size in _GRID_BYTES),
        *(("decode_attention", shape) for shape in decode),
    )


def _shapes(operator: Operator, micro_batch: int) -> Iterator[Shaped]:
    """The table rows an operator looks up (`OperatorTimes.work`)."""
    m, n, k, count = operator.m, operator.n, operator.k, operator.count
    if operator.kind == "gemm":
        wide = n * count
        yield from (("gemm", (m, wide, k)), ("gemm", (m, k, wide)), ("gemm", (k, wide, m)))
    elif operator.kind == "grouped_gemm":
        hidden, width = (k, n // 2) if "gate_up" in operator.name else (n, k)
        yield "experts", (m * count, hidden, width, count)
    elif operator.kind == "attention":
        kv_heads = max(1, operator.kv_count // micro_batch)
        yield "attention", (micro_batch, count // micro_batch, kv_heads, k, n)
