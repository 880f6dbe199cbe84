"""How far off single operators are predicted, on measured shapes that the predictor has not seen.

    .venv/bin/python bench/operators.py [--chips nvidia-a100-80g …] [--cases 400]

Needs the measurements of aiconfigurator-core: pip install 'pluribus[aic]'. Of every table a fifth
of the widths is held out with all their rows (a product's (n, k), an attention's heads and head
width, an expert's sizes; of collectives a fifth of the rows), as a model that nobody measured
would come. Mean absolute errors of

(a) the roofline at the catalogue's rate of a large product, one efficiency for the chip, and a
    launch;
(b) tiles and waves (`predict/gemm.py`), for products on chips whose compute units are known;
(c) the rest of the table with regression between its points; of this also the median, the share
    of held-out times within one and two of its standard deviations, and milliseconds of CPU per
    look-up.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np

from pluribus.core.errors import PluribusError
from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.chip import Chip
from pluribus.measure.aic import aic_tables
from pluribus.predict.gemm import gemm_seconds
from pluribus.predict.operator_tables import Table
from pluribus.predict.operators import LAUNCH_SECONDS
from pluribus.spec.operator_table import SHAPES, OperatorTable

CHIPS = ("nvidia-a100-80g", "nvidia-h100-80g", "nvidia-b200-180g", "nvidia-l40s-48g",
         "intel-arc-pro-b60")  # fmt: skip
SEED = 1
HELD_OUT = 5  # one of so many

# The columns of a shape that change with the batch; the others are the model's.
BATCH = {
    "gemm": ("m",), "attention": ("batch", "tokens"), "decode_attention": ("batch", "context"),
    "experts": ("rows",),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=CHIPS, metavar="KEY")
    parser.add_argument("--cases", type=int, default=400, help="held-out rows per table, at most")
    arguments = parser.parse_args()
    print(f"{'chip':18} {'operator':17} {'type':5} {'rows':>6} {'(a) %':>7} {'(b) %':>7} "
          f"{'(c) %':>7} {'median':>7} {'≤ 1σ':>6} {'≤ 2σ':>6} {'ms':>6}")  # fmt: skip
    for key in arguments.chips:
        chip = find_chip(key, where="--chips")
        for table in aic_tables(key):
            print(line(table, chip, arguments.cases), flush=True)
    return 0


def line(table: OperatorTable, chip: Chip, cases: int) -> str:
    """One row of the report."""
    rng = np.random.default_rng(SEED)
    known, held = split(table, rng)
    if len(held) > cases:
        held = [held[i] for i in rng.choice(len(held), cases, replace=False)]
    model = Table(known, chip)
    start = time.process_time()
    estimates = [model.estimate(shape) for shape, _ in held]
    spent = (time.process_time() - start) / len(held)
    truth = np.array([seconds for _, seconds in held])
    guess = np.array([estimate.value for estimate in estimates])
    sigmas = np.abs(np.log(guess / truth)) / np.array([max(e.sigma, 1e-9) for e in estimates])
    errors = np.abs(guess / truth - 1)
    roof = [roofline(table, chip, shape) for shape, _ in held]
    tiles = "–"
    if table.operator == "gemm" and chip.compute_units and chip.supports(table.precision):
        waves = [gemm_seconds(*shape, 1, chip, table.precision) for shape, _ in held]
        tiles = f"{percent(waves, truth):.1f}"
    roofs = f"{percent(roof, truth):.1f}" if None not in roof else "–"
    return (
        f"{chip.key:18} {table.operator:17} {table.precision:5} {len(table.seconds):6} "
        f"{roofs:>7} {tiles:>7} {100 * errors.mean():7.1f} {100 * np.median(errors):7.1f} "
        f"{100 * np.mean(sigmas <= 1):5.0f}% {100 * np.mean(sigmas <= 2):5.0f}% {1e3 * spent:6.2f}"
    )


def split(
    table: OperatorTable, rng: np.random.Generator
) -> tuple[OperatorTable, list[tuple[tuple[int, ...], float]]]:
    """The table without the held-out widths, and the rows held out."""
    names = SHAPES[table.operator]
    batch = BATCH.get(table.operator, ())
    fixed = [i for i, name in enumerate(names) if name not in batch]
    width = {shape: tuple(shape[i] for i in fixed) for shape in table.rows}
    widths = sorted(set(width.values()))
    chosen = rng.choice(len(widths), max(1, len(widths) // HELD_OUT), replace=False)
    out = {widths[i] for i in chosen}
    held = [row for row in table.rows.items() if width[row[0]] in out]
    kept = [row for row in table.rows.items() if width[row[0]] not in out]
    known = OperatorTable.of_rows(
        table.chip, table.operator, table.precision, kept, source=table.source
    )
    return known, held


def roofline(table: OperatorTable, chip: Chip, shape: tuple[int, ...]) -> float | None:
    """Arithmetic at the rate of a large product against memory traffic, whichever is longer."""
    element = DTYPE_BYTES[table.precision] if table.precision else 2
    match table.operator, shape:
        case "gemm", (m, n, k):
            flops, moved = 2.0 * m * n * k, element * (m * n + n * k + m * k)
        case "attention", (batch, heads, kv_heads, width, tokens):
            flops = 2.0 * batch * heads * width * tokens**2
            moved = 2 * element * batch * tokens * (heads + kv_heads) * width
        case "decode_attention", (batch, heads, kv_heads, width, context):
            flops = 4.0 * batch * heads * width * context
            moved = 2 * element * batch * context * kv_heads * width
        case "experts", (rows, hidden, width, experts):
            flops = 6.0 * rows * hidden * width
            moved = element * 3 * min(rows, experts) * hidden * width
        case _:
            return None
    dtype = table.precision if chip.supports(table.precision) else chip.dtypes[0]
    longer = max(flops / chip.matmul_flops(dtype), moved / chip.memory_bytes_per_s)
    return longer + LAUNCH_SECONDS


def percent(guess: list[float], truth: np.ndarray) -> float:
    errors = [abs(g / t - 1) for g, t in zip(guess, truth, strict=True)]
    return 100 * math.fsum(errors) / len(errors)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PluribusError as error:
        sys.exit(f"error: {error}")
