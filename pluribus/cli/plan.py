"""`pluribus plan`: who does what, and why."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pluribus._api import plan
from pluribus.cli.inputs import add_job, beside, load_calibration, load_job, load_profile
from pluribus.cli.output import console, print_json, print_plan, print_trial, say
from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, write_text
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.predict.setting import Setting
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.job import Job
from pluribus.spec.plan import Plan
from pluribus.spec.profile import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--profile", help="measured times (profile.json beside the job, if any)")
    parser.add_argument("--calibration", help="a cluster's factors (calibration.json)")
    parser.add_argument("--out", help="file to write (plan.json beside the job file)")
    parser.add_argument("--html", metavar="FILE", help="draw the plan and why it is the best")
    parser.add_argument(
        "--pareto", metavar="FILE", help="draw the cheapest plan for every time the job may take"
    )
    parser.add_argument(
        "--trial", metavar="K", type=int, help="run the best K plans here, keep the measured best"
    )
    parser.add_argument(
        "--trial-steps", metavar="N", type=int, default=3, help="timed steps of each (3)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    job, cluster = load_job(arguments)
    profile = load_profile(arguments.profile, arguments.job, job, cluster)
    if profile is None:
        say("no profile: predicting by formulas from datasheets and published measurements")
    progress = partial(_say, "weighing")
    calibration = load_calibration(arguments.calibration)
    if arguments.trial is not None:
        result = _trial(arguments, job, cluster, profile, calibration)
    else:
        result = plan(job, cluster, profile, calibration=calibration, progress=progress)
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


def _say(word: str, line: str) -> None:
    say(f"{word} {line}")


def _trial(
    arguments: argparse.Namespace,
    job: Job,
    cluster: Cluster,
    profile: Profile | None,
    calibration: Calibration | None,
) -> Plan:
    """The measured best of the best few plans; what the chips took is written as a profile."""
    from pluribus.plan.search import Search
    from pluribus.train.trial import try_plans

    if arguments.trial < 1 or arguments.trial_steps < 1:
        raise ConfigError(
            f"--trial {arguments.trial} with --trial-steps {arguments.trial_steps}",
            do="Give whole numbers from 1.",
        )
    model = Model.from_config(job.resolve(job.model.config))
    setting = Setting(job, model, cluster, profile, calibration=calibration or IDENTITY)
    plans = Search(setting, partial(_say, "weighing")).best_few(arguments.trial)
    folder = beside(arguments.job, "trial")
    trial = try_plans(plans, setting, folder, steps=arguments.trial_steps, progress=say)
    print_trial(trial)
    file = folder / "profile.json"
    trial.profile.save(file)
    console.print(f"wrote {file}: the profile, corrected by what the chips took")
    return trial.best


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
