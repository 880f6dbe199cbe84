"""`pluribus calibrate`: fits the predictor's factors to measured runs."""

from __future__ import annotations

import argparse

from rich.table import Table

from pluribus._api import calibrate
from pluribus.cli.output import console, print_json
from pluribus.core.io import read_json
from pluribus.core.units import format_seconds
from pluribus.spec.calibration import FACTORS, CalibrationRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", help="run folders of `pluribus train`, or files of measured runs"
    )
    parser.add_argument("--out", default="calibration.json", help="file to write")
    parser.add_argument("--json", action="store_true", help="print the calibration as JSON")


def run(arguments: argparse.Namespace) -> int:
    record = calibrate(*arguments.runs)
    record.save(arguments.out)
    if arguments.json:
        print_json(read_json(arguments.out))
        return 0
    _print(record)
    console.print(f"wrote {arguments.out}")
    return 0


def _print(record: CalibrationRecord) -> None:
    table = Table(title="Measured runs", title_justify="left")
    table.add_column("run")
    for name in ("measured", "predicted", "error", "calibrated", "error"):
        table.add_column(name, justify="right")
    for run in record.runs:
        table.add_row(
            run.name, format_seconds(run.seconds),
            format_seconds(run.before), f"{run.before / run.seconds - 1:+.1%}",
            format_seconds(run.after), f"{run.after / run.seconds - 1:+.1%}",
        )  # fmt: skip
    console.print(table)
    factors = record.factors
    console.print(
        "factors: " + ", ".join(f"{name} {getattr(factors, name):.3f}" for name in FACTORS)
    )
    console.print(
        f"80 % of runs like these are expected within ± {factors.spread or 0:.0%}, of others "
        "within more"
    )
