"""`pluribus probe`: what is on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus.cli.output import console, print_json, say
from pluribus.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="cluster.toml", help="file to write (cluster.toml)")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--json", action="store_true", help="print the cluster as JSON too")


def run(arguments: argparse.Namespace) -> int:
    from pluribus.measure.probe import probe

    out = Path(arguments.out)
    if out.exists() and not arguments.force:
        raise ConfigError(
            "exists already", where=str(out), do="Name another with --out, or add --force."
        )
    result = probe(progress=say)
    result.cluster.save(out)
    if arguments.json:
        print_json(result.cluster.to_table())
        return 0
    for note in result.notes:
        console.print(note)
    console.print(f"wrote {out}")
    return 0
