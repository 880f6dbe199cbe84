"""`pluribus comm`: what the links between ranks carry, and what each algorithm makes of them."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pluribus.cli.output import console, print_json
from pluribus.core.errors import ConfigError
from pluribus.core.io import write_text
from pluribus.core.units import MIB, format_bytes

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("probe", "bench"), help="links between all pairs, or collectives"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=4,
        help="processes on this machine (4); torchrun's, if under it",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--picture", help="probe: write the matrix as a page, e.g. links.html")
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=["all_reduce"], metavar="NAME",
        help=f"bench: of {', '.join(OPERATIONS)} (all_reduce)",
    )  # fmt: skip
    parser.add_argument(
        "--mib", type=float, nargs="+", default=[0.001, 0.0625, 1, 16], help="bench: sizes"
    )
    parser.add_argument("--repeats", type=int, default=5, help="bench: of each, a median is shown")
    parser.add_argument("--chosen", action="store_true", help="bench: the tuner's choice alone")
    parser.add_argument("--codec", default="none", help="of sums between islands, e.g. int8")


def run(arguments: argparse.Namespace) -> int:
    if arguments.ranks < 2 or arguments.repeats < 1 or min(arguments.mib) <= 0:
        raise ConfigError("needs two ranks, one repeat and sizes above 0", where="command line")
    given = {
        "what": arguments.what,
        "operations": arguments.operations,
        "sizes": [int(size * MIB) for size in arguments.mib],
        "repeats": arguments.repeats,
        "every": not arguments.chosen,
    }
    events = list(_events(arguments, given))
    if not events:  # of torchrun's processes, only the first prints
        return 0
    if arguments.what == "probe":
        return _probe(events[0]["links"], arguments)
    rows = [event["row"] for event in events]
    if arguments.json:
        print_json(rows)
        return 0
    _print_rows(rows)
    return 0


def _events(arguments: argparse.Namespace, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from dataclasses import asdict

    from pluribus.comm import survey_rank
    from pluribus.comm.codecs.registry import codec
    from pluribus.comm.options import Options

    options = asdict(Options.from_environment(os.environ)) | {"probe": False}
    codec(arguments.codec)  # raises if there is none
    if arguments.codec != "none":
        options["codec"] = arguments.codec
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield from survey_rank.everywhere(given, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from survey_rank.here(arguments.ranks, given, options, Path(folder))


def _probe(found: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    from pluribus.dashboard.links_picture import latency_text, links_page, rate_text

    if arguments.picture:
        write_text(Path(arguments.picture), links_page(found))
    if arguments.json:
        print_json(found)
        return 0
    size = len(found["ranks"])
    matrix = Table(title="Rate above the diagonal, latency below it", title_justify="left")
    matrix.add_column("rank")
    for rank in range(size):
        matrix.add_column(str(rank), justify="right")
    matrix.add_column("island")
    matrix.add_column("adds", justify="right")
    cells = [["·"] * size for _ in range(size)]
    for link in found["links"]:
        a, b = link["ranks"]
        cells[a][b] = rate_text(link["bytes_per_s"])
        cells[b][a] = latency_text(link["latency_s"])
    for rank in found["ranks"]:
        at = rank["rank"]
        island, adds = str(rank["island"]), rate_text(rank["add_bytes_per_s"])
        matrix.add_row(str(at), *cells[at], island, adds)
    console.print(matrix)
    worst = max(link["loss"] for link in found["links"])
    console.print(f"packets sent again: {worst:.2%} on the worst link")
    code = found["ranks"][0]["code_bytes_per_s"]
    if code:
        console.print(f"coding: {rate_text(code)} of fp32")
    console.print(f"the tuner's own probe took {found['probe_seconds']:.2f} s")
    if arguments.picture:
        console.print(f"wrote {arguments.picture}")
    return 0


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="* is what the tuner chooses", title_justify="left")
    table.add_column("collective")
    table.add_column("size", justify="right")
    table.add_column("algorithm")
    for name in ("ms", "predicted, ms", "bus bandwidth"):
        table.add_column(name, justify="right")
    last = None
    for row in rows:
        key = row["operation"], row["num_bytes"]
        if key != last:
            table.add_section()
        mark = "*" if row["chosen"] else ""
        table.add_row(
            row["operation"] if key != last else "",
            format_bytes(row["num_bytes"]) if key != last else "",
            row["algorithm"] + mark,
            f"{1e3 * row['seconds']:.2f}",
            f"{1e3 * row['predicted_seconds']:.2f}",
            f"{row['bus_bytes_per_s'] / 1e9:.3f} GB/s",
        )
        last = key
    console.print(table)
