"""`pluribus plan`: who does what, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus._api import plan
from pluribus.cli.inputs import add_job, beside, load_calibration, load_job, load_profile
from pluribus.cli.output import console, print_json, print_plan, say
from pluribus.core.io import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--profile", help="measured times (profile.json beside the job, if any)")
    parser.add_argument("--calibration", help="a cluster's factors (calibration.json)")
    parser.add_argument("--out", help="file to write (plan.json beside the job file)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    job, cluster = load_job(arguments)
    profile = load_profile(arguments.profile, arguments.job, job, cluster)
    if profile is None:
        say("no profile: predicting by formulas from datasheets and published measurements")
    result = plan(
        job, cluster, profile, calibration=load_calibration(arguments.calibration),
        progress=lambda team: say(f"weighing {team}"),
    )  # fmt: skip
    out = Path(arguments.out) if arguments.out else beside(arguments.job, "plan.json")
    result.save(out)
    if arguments.json:
        print_json(read_json(out))
        return 0
    print_plan(result)
    console.print(f"wrote {out}")
    return 0
