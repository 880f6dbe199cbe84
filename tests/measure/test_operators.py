"""Which operators are timed, and the timing of them."""

import math

import pytest
import torch

from pluribus.measure.operators import OperatorBench
from pluribus.measure.shapes import decode_shapes, grid_shapes, job_shapes
from pluribus.measure.tasks import OperatorTask
from pluribus.model.share import Share
from pluribus.predict.operator_tables import operator_times
from pluribus.spec.operator_table import SHAPES, OperatorTable
from pluribus.spec.profile import Profile

from ..small import make_chip, make_model

MODEL = make_model(blocks=3)


def test_a_jobs_shapes_are_what_the_predictor_looks_up() -> None:
    """Every product and every attention of the job finds its own row, at both tp degrees."""
    chip = make_chip("c")
    shapes = job_shapes(MODEL, (1, 3), 128, (1, 2, 8), 2)
    assert len(set(shapes)) == len(shapes)
    tables = tuple(
        OperatorTable.of_rows(
            "c", kind, "bf16",
            [(shape, 1.0) for name, shape in shapes if name == kind], source="a test",
        )
        for kind in ("gemm", "attention")
    )  # fmt: skip
    times = operator_times(Profile(cluster_digest="", operators=tables), chip)
    for layer in MODEL.layers:
        for size in (1, 3):
            for tp in (1, 2):
                for operator in layer.operators(Share(size, 128, tp=tp)):
                    if operator.kind in ("gemm", "attention"):
                        forward, *_ = times.work(operator, "bf16", size)
                        assert forward.matmul + forward.attention == pytest.approx(1.0)


def test_decoding_is_one_row_of_each_sequence() -> None:
    shapes = decode_shapes(MODEL, (5,), (100, 200), (1,))
    assert ("decode_attention", (5, 4, 2, 16, 100)) in shapes
    assert {shape[0] for kind, shape in shapes if kind == "gemm"} >= {5}
    assert not any(kind == "attention" for kind, _ in shapes)


def test_every_row_has_the_columns_of_its_operator() -> None:
    for kind, shape in (*job_shapes(MODEL, (1,), 64, (1,), 2), *grid_shapes(MODEL)):
        assert len(shape) == len(SHAPES[kind])
        assert min(shape) > 0


def test_cheap_operators_are_timed_and_endless_ones_left_out() -> None:
    tasks = [
        OperatorTask(operator="gemm", shape=(1 << 20, 1 << 14, 1 << 14)),  # minutes
        OperatorTask(operator="gemm", shape=(32, 64, 64)),
        OperatorTask(operator="attention", shape=(1, 4, 2, 16, 32)),
        OperatorTask(operator="decode_attention", shape=(2, 4, 2, 16, 32)),
        OperatorTask(operator="elementwise", shape=(4096,)),
    ]
    bench = OperatorBench("fp32", torch.device("cpu"))
    rows = bench.measure(tasks, budget_s=2.0)  # a busy machine may pause us for a while
    assert {index for index, *_ in rows} == {1, 2, 3, 4}
    for _, seconds, noise in rows:
        assert 0 < seconds < math.inf
        assert noise >= 0
