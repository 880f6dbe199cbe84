"""`pluribus plan`: who does what, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus._api import plan
from pluribus.cli.inputs import add_job, beside, load_job, load_profile
from pluribus.cli.output import console, print_json, print_plan, say
from pluribus.core.io import read_json, write_text
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--profile", help="measured times (profile.json beside the job, if any)")
    parser.add_argument("--out", help="file to write (plan.json beside the job file)")
    parser.add_argument("--html", metavar="FILE", help="draw the plan and why it is the best")
    parser.add_argument(
        "--pareto", metavar="FILE", help="draw the cheapest plan for every time the job may take"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    job, cluster = load_job(arguments)
    profile = load_profile(arguments.profile, arguments.job, cluster)
    if profile is None:
        say("no profile: predicting by formulas from datasheets and published measurements")
    result = plan(job, cluster, profile, progress=lambda team: say(f"weighing {team}"))
    out = Path(arguments.out) if arguments.out else beside(arguments.job, "plan.json")
    result.save(out)
    if arguments.json:
        print_json(read_json(out))
        return 0
    print_plan(result)
    console.print(f"wrote {out}")
    if arguments.html:
        _draw(result, Path(arguments.html))
    if arguments.pareto:
        _draw_front(result, Path(arguments.pareto))
    return 0


def _draw(result: Plan, file: Path) -> None:
    from pluribus.dashboard.report import render_report
    from pluribus.dashboard.run import plan_data

    write_text(file, render_report(plan_data(result, Setting.of_plan(result))))
    console.print(f"wrote {file}")


def _draw_front(result: Plan, file: Path) -> None:
    from pluribus.dashboard.pareto import front_points, pareto_page
    from pluribus.plan.front import pareto_front

    setting = Setting.of_plan(result)
    plans = pareto_front(setting, progress=say)
    steps = setting.job.train.num_steps
    title = f"{setting.model.name}: time against money"
    write_text(file, pareto_page(title, front_points(plans, steps)))
    console.print(f"wrote {file}")
