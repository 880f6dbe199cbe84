"""`pluribus predict`: what a plan will take, from the plan alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from pluribus.cli.inputs import load_calibration
from pluribus.cli.output import console, print_details, print_json, print_plan
from pluribus.core.io import write_text
from pluribus.core.schema import to_table
from pluribus.plan.alone import known_or_searched
from pluribus.plan.validate import check, require_valid
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan
from pluribus.spec.profile import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="the plan, e.g. plan.json")
    parser.add_argument("--profile", help="measured times to use instead of the plan's own")
    parser.add_argument("--calibration", help="a cluster's factors (calibration.json)")
    parser.add_argument("--html", metavar="FILE", help="write it as one HTML page")
    parser.add_argument("--trace", metavar="FILE", help="write the timeline as a Chrome trace")
    parser.add_argument("--json", action="store_true", help="print the prediction as JSON")


def run(arguments: argparse.Namespace) -> int:
    plan = Plan.load(arguments.plan)
    profile = Profile.load(arguments.profile) if arguments.profile else None
    calibration = load_calibration(arguments.calibration)
    setting = Setting.of_plan(plan, profile, calibration)
    # A plan that does not fit can be looked at; one that makes no sense cannot.
    require_valid(plan, setting, memory=False)
    alone = known_or_searched(plan, setting)
    plan = replace(plan, prediction=forecast(plan, setting, alone).prediction)
    if arguments.html or arguments.trace:
        _draw(plan, setting, arguments)
    if arguments.json:
        print_json(to_table(plan.prediction))
        return 0
    print_plan(plan)
    print_details(plan)
    for violation in check(plan, setting):
        console.print(f"does not fit: {violation}")
    for file in (arguments.html, arguments.trace):
        if file:
            console.print(f"wrote {file}")
    return 0


def _draw(plan: Plan, setting: Setting, arguments: argparse.Namespace) -> None:
    from pluribus.dashboard.report import render_report
    from pluribus.dashboard.run import plan_data
    from pluribus.dashboard.trace import chrome_trace

    data = plan_data(plan, setting)
    if arguments.html:
        write_text(Path(arguments.html), render_report(data))
    if arguments.trace:
        write_text(Path(arguments.trace), json.dumps(chrome_trace(data)))
