"""The doors of the house as functions. Each imports its rooms when it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluribus.hardware.cluster import Cluster
    from pluribus.spec.calibration import Calibration, CalibrationRecord
    from pluribus.spec.job import Job
    from pluribus.spec.plan import Plan
    from pluribus.spec.prediction import Prediction
    from pluribus.spec.profile import Profile
    from pluribus.train.run import RunOptions, RunResult


def _quiet(_: str) -> None:
    """Progress for callers who want none."""


def probe(*, progress: Callable[[str], None] = _quiet) -> Cluster:
    """Looks at this machine and describes its chips; see `pluribus.measure.probe`."""
    from pluribus.measure.probe import probe as run

    return run(progress=progress).cluster


def profile(
    job: Job, cluster: Cluster, *, log_folder: str | Path = "logs",
    progress: Callable[[str], None] = _quiet,
) -> Profile:  # fmt: skip
    """Measures the job's layers on each chip of this machine, and the links between them."""
    from pluribus.measure.profile import profile as run
    from pluribus.model.model import Model

    model = Model.from_config(job.resolve(job.model.config))
    return run(
        cluster, job, model, progress=lambda line, _: progress(line), log_folder=Path(log_folder)
    )


def plan(
    job: Job, cluster: Cluster, profile: Profile | None = None, *,
    calibration: Calibration | None = None, progress: Callable[[str], None] = _quiet,
) -> Plan:  # fmt: skip
    """The plan that serves the job's objective best on the cluster.

    Args:
        profile: measured times, used instead of formulas where it has them.
        calibration: the cluster's factors on what formulas say; see `calibrate`.

    Raises:
        PlanError: no plan fits; says by how many GiB on which chip.
    """
    from pluribus.model.model import Model
    from pluribus.plan.search import Search
    from pluribus.predict.setting import Setting
    from pluribus.spec.calibration import IDENTITY

    model = Model.from_config(job.resolve(job.model.config))
    setting = Setting(job, model, cluster, profile, calibration=calibration or IDENTITY)
    return Search(setting, progress).best()


def predict(
    plan: Plan, profile: Profile | None = None, *, calibration: Calibration | None = None
) -> Prediction:
    """What a plan will take: seconds, bytes and money.

    Args:
        profile, calibration: used instead of those it was planned with; what each pool delivers
            alone is then planned anew.

    Raises:
        PlanError: the plan breaks a law other than that of memory; see `plan.validate`.
    """
    from pluribus.plan.alone import known_or_searched
    from pluribus.plan.validate import require_valid
    from pluribus.predict.predict import forecast
    from pluribus.predict.setting import Setting

    setting = Setting.of_plan(plan, profile, calibration)
    require_valid(plan, setting, memory=False)
    return forecast(plan, setting, known_or_searched(plan, setting)).prediction


def calibrate(*runs: str | Path) -> CalibrationRecord:
    """Fits a cluster's factors to up to eight measured runs.

    Args:
        runs: folders of `train`, or files of measured runs (docs/predict.md).

    Returns:
        The factors, as `plan` and `predict` take them, and what they make of each run.
    """
    from pluribus.predict.measured_runs import calibrate_files

    return calibrate_files(runs)


def train(
    plan: Plan, folder: str | Path, *, options: RunOptions | None = None,
    listener: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Callable[[str], None] = _quiet,
) -> RunResult:  # fmt: skip
    """Executes a plan on this machine; see `pluribus.train.run.train`."""
    from pluribus.train.run import train as run

    return run(plan, folder, options=options, listener=listener, progress=progress)


def report(folder: str | Path) -> Path:
    """Writes a run's report.html and trace.json into its folder; returns the report's path."""
    from pluribus.dashboard.run import report_run

    return report_run(Path(folder))[0]
