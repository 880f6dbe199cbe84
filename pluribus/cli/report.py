"""`pluribus report`: a run as one HTML page and a Chrome trace."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus.cli.output import console, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of the run, e.g. runs/demo")
    parser.add_argument("--json", action="store_true", help="print the files' paths as JSON")


def run(arguments: argparse.Namespace) -> int:
    from pluribus.dashboard.run import report_run

    page, trace = report_run(Path(arguments.folder))
    if arguments.json:
        print_json({"report": str(page), "trace": str(trace)})
        return 0
    console.print(f"report: {page}")
    console.print(f"trace:  {trace} (open it in a Chrome-trace viewer)")
    return 0
