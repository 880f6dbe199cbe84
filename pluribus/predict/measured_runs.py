"""Measured runs as what `calibrate` takes, and the record of what it found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pluribus.core.errors import ConfigError, nearest, sentence
from pluribus.core.schema import from_table
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.predict.calibrate import MeasuredRun, calibrate
from pluribus.predict.predict import step_seconds
from pluribus.predict.regular import Layout
from pluribus.predict.regular_plan import regular_pipelines
from pluribus.predict.setting import Setting
from pluribus.predict.software import PROGRAMS
from pluribus.spec.calibration import IDENTITY, Calibration, CalibrationRecord, FittedRun
from pluribus.spec.job import Job
from pluribus.spec.measured import MOST_RUNS, MeasuredSpec, load_measured
from pluribus.spec.plan import Plan


def calibrate_files(paths: Sequence[str | os.PathLike[str]]) -> CalibrationRecord:
    """Fits a cluster's factors to the runs of some files and run folders.

    Raises:
        ConfigError: no run, too many, or a mistake in one.
        PlanError: a plan or a layout that cannot be predicted.
    """
    named = [run for path in paths for run in load_measured(path)]
    if not 1 <= len(named) <= MOST_RUNS:
        raise ConfigError(
            f"{len(named)} measured runs",
            do=f"Give 1 to {MOST_RUNS} runs that differ in what bounds them.",
        )
    runs = [measured_run(spec, name) for name, spec in named]
    factors = calibrate(runs)
    fitted = tuple(
        FittedRun(
            name=name, seconds=run.seconds, before=run.predict(IDENTITY), after=run.predict(factors)
        )
        for (name, _), run in zip(named, runs, strict=True)
    )
    return CalibrationRecord(factors=factors, runs=fitted)


def measured_run(spec: MeasuredSpec, name: str) -> MeasuredRun:
    """A run whose prediction is that of its plan's timeline."""
    if spec.program not in PROGRAMS:
        raise ConfigError(
            f"unknown program '{spec.program}'", where=name,
            do=sentence(nearest(spec.program, PROGRAMS)),
        )  # fmt: skip
    if spec.plan is not None:
        plan = Plan.load(spec.plan)
        setting = Setting.of_plan(plan)
    else:
        plan, setting = _regular(spec, name)
    setting = replace(setting, software=PROGRAMS[spec.program])

    def predict(factors: Calibration) -> float:
        return step_seconds(plan, setting.calibrated(factors))

    predict(IDENTITY)  # mistakes show now
    return MeasuredRun(predict, spec.seconds)


def _regular(spec: MeasuredSpec, name: str) -> tuple[Plan, Setting]:
    assert spec.job, "the spec has checked it"
    assert spec.cluster, "the spec has checked it"
    assert spec.pool, "the spec has checked it"
    job, cluster = Job.load(spec.job), Cluster.load(spec.cluster)
    table: dict[str, Any] = {"global_batch": job.train.global_batch, **spec.layout}
    layout = from_table(Layout, table, file=name, at="layout")
    pool = cluster.pool(spec.pool)
    if layout.num_chips > pool.num_chips:
        raise ConfigError(
            f"the layout takes {layout.num_chips} chips, {spec.pool} has {pool.num_chips}",
            where=name, do="Write degrees whose product the pool has.",
        )  # fmt: skip
    model = Model.from_config(job.resolve(job.model.config))
    if not model.supports_tp(layout.tp) or not model.supports_ep(layout.ep):
        raise ConfigError(
            f"tp {layout.tp} or ep {layout.ep} does not divide {model.name}", where=name,
            do="Write degrees that divide its heads and experts.",
        )  # fmt: skip
    plan = Plan(
        pipelines=regular_pipelines(model, pool, layout),
        job=job.to_table(), job_digest=job.digest,
        cluster=cluster.to_table(), cluster_digest=cluster.digest,
        model_config=dict(model.config), directory=job.directory,
    )  # fmt: skip
    return plan, Setting(job, model, cluster)
