"""Operators from tables: 114 rows that aiconfigurator-core 0.12.0 has of the A100, and made-up
ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.core.schema import from_table
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.model.share import Share
from pluribus.predict.collectives import group_all_reduce_seconds
from pluribus.predict.compute import layer_time, layer_work
from pluribus.predict.gemm import gemm_constants
from pluribus.predict.operator_tables import TABLE_SPREAD, Table, operator_times
from pluribus.predict.regression import LocalRegression
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import LayerTime, Profile

from ..small import SEQUENCE, make_chip, make_model, make_pool

A100 = find_chip("nvidia-a100-80g", where="test")
TABLES = {
    table.operator: table
    for table in (
        from_table(OperatorTable, entry, file="a100_tables.json")
        for entry in json.loads((Path(__file__).parent / "data/a100_tables.json").read_text())
    )
}
PROFILE = Profile(cluster_digest="", operators=tuple(TABLES.values()))


def without(table: OperatorTable, *shapes: tuple[int, ...]) -> OperatorTable:
    rows = {shape: seconds for shape, seconds in table.rows.items() if shape not in shapes}
    return OperatorTable.of_rows(
        table.chip, table.operator, table.precision, rows.items(), source=table.source
    )


@pytest.mark.parametrize("operator", sorted(TABLES))
def test_what_was_measured_is_what_comes_out(operator: str) -> None:
    table = Table(TABLES[operator], A100)
    for shape, seconds in TABLES[operator].rows.items():
        assert table.seconds(*shape) == seconds


@pytest.mark.parametrize(
    ("operator", "most"),
    [("gemm", 0.06), ("attention", 0.06), ("decode_attention", 0.08), ("all_reduce", 0.05)],
)
def test_each_row_is_predicted_from_the_others(operator: str, most: float) -> None:
    table = TABLES[operator]
    errors = [
        abs(Table(without(table, shape), A100).seconds(*shape) / seconds - 1)
        for shape, seconds in table.rows.items()
    ]
    assert np.median(errors) < most


def test_no_product_passes_the_chips_peak() -> None:
    fast = OperatorTable.of_rows(
        A100.key, "gemm", "bf16",
        [((4096, 4096, 4096), 2 * 4096**3 / 310e12), ((2048, 2048, 2048), 2 * 2048**3 / 300e12)],
        source="a test",
    )  # fmt: skip
    table = Table(fast, A100)
    for side in (8192, 16384, 32768):
        assert 2 * side**3 / table.seconds(side, side, side) <= 312e12


def test_widths_that_miss_the_tiles_are_slow_between_measured_ones_too() -> None:
    """BLOOM prequel: hidden 14400 → 13824 raised the rate from 94 to 120 TFLOP/s; the table has
    12288 and 16384 only."""
    times = operator_times(PROFILE, A100)

    def rate(hidden: int) -> float:
        part = 4 * hidden // 8  # one of eight tensor-parallel ranks
        return 2 * 2048 * hidden * part / times.price("gemm", "fp16", 2048, part, hidden)

    assert rate(13824) > 1.1 * rate(14400)


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(-3, 3)), min_size=2, max_size=20,
        unique_by=lambda pair: round(pair[0], 2),
    ),
    st.floats(0, 10),
)  # fmt: skip
def test_regression_stays_about_the_values_around_it(
    pairs: list[tuple[float, float]], at: float
) -> None:
    places, values = np.array(pairs).T
    estimate = LocalRegression(places[:, None], values)(np.array([at]))
    room = 0.05 * (values.max() - values.min()) + 1e-9
    assert values.min() - room <= estimate.value <= values.max() + room
    assert estimate.sigma >= 0


def test_regression_is_a_line_between_two_points_and_less_sure_away_from_them() -> None:
    model = LocalRegression(np.array([[0.0], [2.0]]), np.array([1.0, 3.0]))
    assert model(np.array([1.0])).value == pytest.approx(2)
    assert model(np.array([0.5])).value == pytest.approx(1.5, abs=0.03)
    assert model(np.array([0.0])).sigma < model(np.array([1.0])).sigma < model(np.array([9])).sigma


def test_products_of_a_layer_come_from_the_table_forward_and_backward() -> None:
    """n and k of each product of a block are rows of the table; the 12.5 % a step takes more than
    a benchmark is the same for both."""
    rows = {}
    model = make_model(blocks=1)
    block = model.layers[1]
    for operator in block.operators(Share(1, SEQUENCE)):
        if operator.kind == "gemm":
            m, n, k = operator.m, operator.n * operator.count, operator.k
            rows |= {(m, n, k): 1.0, (m, k, n): 2.0, (k, n, m): 4.0}
    products = sum(o.kind == "gemm" for o in block.operators(Share(1, SEQUENCE)))
    table = OperatorTable.of_rows(A100.key, "gemm", "bf16", rows.items(), source="a test")
    times = operator_times(Profile(cluster_digest="", operators=(table,)), A100)
    forward, backward, weight = layer_work(block, A100, (1, SEQUENCE), "bf16", times=times)
    # q and o of this model have equal shapes, and so have their gradients.
    kept = gemm_constants(A100.key).sustained
    least, most = products / kept, (products + 1) * 4 / kept
    assert least <= forward.matmul <= most
    assert least < weight < most
    assert forward.matmul + weight < backward.matmul + forward.matmul


def test_tables_of_another_chip_or_type_change_nothing() -> None:
    block = make_model().layers[1]
    plain = layer_time(block, make_pool("a", A100), 1, SEQUENCE, 1, "bf16", None)
    elsewhere = Profile(
        cluster_digest="",
        operators=(
            OperatorTable.of_rows("other", "gemm", "bf16", [((1, 1, 1), 9.0)], source="a test"),
        ),
    )
    assert layer_time(block, make_pool("a", A100), 1, SEQUENCE, 1, "bf16", elsewhere) == plain
    eight_bit = OperatorTable.of_rows(A100.key, "gemm", "fp8", [((1, 1, 1), 9.0)], source="a test")
    profile = Profile(cluster_digest="", operators=(eight_bit,))
    time = layer_time(block, make_pool("a", A100), 1, SEQUENCE, 1, "bf16", profile)
    assert time.forward == plain.forward


def test_sums_come_from_the_table_of_the_chip() -> None:
    model = Model.from_config({**make_model().config, "hidden_size": 64})
    block, pool = model.layers[1], make_pool("a", make_chip("c"), chips_per_node=2)
    num_bytes = round(block.output_bytes(Share(1, SEQUENCE)))
    rows = [((2, num_bytes), 0.5), ((2, 2 * num_bytes), 0.7)]
    table = OperatorTable.of_rows("c", "all_reduce", "", rows, source="a test")
    profile = Profile(cluster_digest="", operators=(table,))
    time = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", profile)
    assert time.forward == pytest.approx(1.0, rel=1e-3)  # two sums; the arithmetic is microseconds
    assert time.spread == TABLE_SPREAD
    cluster = Cluster((pool,))
    two = ["here/a/0/0", "here/a/0/1"]
    assert group_all_reduce_seconds(num_bytes, two, cluster, profile) == 0.5
    three = operator_times(profile, pool.chip).collective("all_reduce", 3, num_bytes)
    assert three is None  # more than were measured


def measured(pool_chip: str, layer, size: int, factor: float, tp: int = 1) -> LayerTime:
    formula = layer_time(
        layer, make_pool("a", make_chip(pool_chip), chips_per_node=2), size, SEQUENCE, tp, "bf16",
        None,
    )  # fmt: skip
    return LayerTime(
        chip=pool_chip, layer=layer.signature, micro_batch=size, sequence_length=SEQUENCE,
        tensor_parallel=tp, precision="bf16", forward=factor * formula.forward,
        backward=2 * factor * formula.backward, spread=0.01,
    )  # fmt: skip


def test_a_layer_between_measured_sizes_keeps_their_level() -> None:
    """Twice the formula at 2 and three times at 4: at 3 it is in between, and so on the way out."""
    block, pool = make_model().layers[1], make_pool("a", make_chip("c"), chips_per_node=2)
    layers = (measured("c", block, 2, 2.0), measured("c", block, 4, 3.0))
    profile = Profile(cluster_digest="", layers=layers)

    def ratio(size: int) -> tuple[float, float, float]:
        formula = layer_time(block, pool, size, SEQUENCE, 1, "bf16", None)
        time = layer_time(block, pool, size, SEQUENCE, 1, "bf16", profile)
        return time.forward / formula.forward, time.backward / formula.backward, time.spread

    forward, backward, near = ratio(3)
    assert 2.2 < forward < 2.8
    assert backward == pytest.approx(2 * forward, rel=0.01)
    assert ratio(2)[0] == pytest.approx(2.0)
    assert 1.9 < ratio(1)[0] < 2.6
    assert near < ratio(1)[2] < ratio(16)[2]


def test_one_chips_time_says_how_fast_two_compute_but_not_how_they_sum() -> None:
    block, pool = make_model().layers[1], make_pool("a", make_chip("c"), chips_per_node=2)
    alone = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", None).forward
    profile = Profile(cluster_digest="", layers=(measured("c", block, 1, 3.0),))
    slow = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", profile).forward
    profile = Profile(cluster_digest="", layers=(measured("c", block, 1, 6.0),))
    slower = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", profile).forward
    compute = (slower - slow) / 3
    assert 0 < compute < alone
    assert slow - 3 * compute == pytest.approx(alone - compute)  # the sums stay as they were
    both = Profile(cluster_digest="", layers=(measured("c", block, 2, 2.0, tp=2),))
    near = layer_time(block, pool, 1, SEQUENCE, 2, "bf16", both).forward
    assert near == pytest.approx(2 * alone)
