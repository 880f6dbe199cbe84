"""Fits what hosts and waiting ranks cost to one half of a sweep and scores the other half.

    .venv/bin/python bench/fit_host.py --data shared/data/training_measured_single_node.csv

Runs that share hidden size, tensor parallelism and micro-batch share their scatter, so halves are
drawn by these three, not by run: a chequerboard of them, each half once fitted and once scored.
Printed are the constants of `MEGATRON_2021` (hosts) and of the program that waits in its sums, by
mean absolute log error; a prior keeps each within about a factor of two of where it stands.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from published import load, terms_of
from published_rows import Row

NAMES = ("host_s", "host_backward", "host_talk_s", "sum_wait_s", "micro_batch_s")

# Mean log error that a constant may save when it is moved by a factor e: a weak prior.
PRIOR = 0.001

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    rows = [row for row in load([parser.parse_args().data])[0] if row.seconds]
    halves = [[row for row in rows if _square(row) % 2 == half] for half in (0, 1)]
    for name, chosen in (("one half", halves[0]), ("other half", halves[1]), ("all", rows)):
        found = fit(chosen)
        rest = [row for row in rows if row not in chosen] or rows
        values = "  ".join(f"{key} {value:.3g}" for key, value in found.items())
        print(f"{name}: {values}")
        print(
            f"  fitted {100 * error(chosen, found):.1f} %, scored {100 * error(rest, found):.1f} %"
        )


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """The constants that fit some runs best, one after another, in steps that halve."""
    start = {name: getattr(rows[0].software, name) for name in NAMES}
    found, step = dict(start), 0.4
    best = _loss(rows, found, start)
    for _ in range(ROUNDS):
        for name in NAMES:
            for factor in (math.exp(step), math.exp(-step)):
                tried = {**found, name: found[name] * factor}
                while (loss := _loss(rows, tried, start)) < best:
                    found, best = tried, loss
                    tried = {**found, name: found[name] * factor}
        step /= 2
    return found


def error(rows: Sequence[Row], constants: dict[str, float]) -> float:
    """Mean absolute log error."""
    return statistics.fmean(
        abs(math.log(_seconds(row, constants) / row.seconds)) for row in rows if row.seconds
    )


def _seconds(row: Row, constants: dict[str, float]) -> float:
    return terms_of(replace(row, software=replace(row.software, **constants))).seconds()


def _loss(rows: Sequence[Row], tried: dict[str, float], start: dict[str, float]) -> float:
    moved = sum(math.log(tried[name] / start[name]) ** 2 for name in NAMES)
    return error(rows, tried) + PRIOR * moved


def _square(row: Row) -> int:
    """The colour of a run on the chequerboard."""
    sizes = (row.model.hidden_size, row.layout.tp, row.layout.micro_batch)
    return sum(round(math.log2(size)) for size in sizes)


if __name__ == "__main__":
    main()
