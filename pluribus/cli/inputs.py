"""The files commands read: job, cluster and profile, found beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus.core.errors import ConfigError
from pluribus.hardware.cluster import Cluster
from pluribus.spec.calibration import Calibration, CalibrationRecord
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile


def add_job(parser: argparse.ArgumentParser) -> None:
    """The job file, and the cluster beside it."""
    parser.add_argument("job", help="the job file, e.g. job.toml")
    parser.add_argument("--cluster", help="cluster file (cluster.toml beside the job file)")


def load_job(arguments: argparse.Namespace) -> tuple[Job, Cluster]:
    """The job and its cluster."""
    job = Job.load(arguments.job)
    return job, Cluster.load(arguments.cluster or beside(arguments.job, "cluster.toml"))


def load_profile(path: str | None, job: str, cluster: Cluster) -> Profile | None:
    """The named profile, or the one beside the job file if it is of this cluster.

    Raises:
        ConfigError: the named profile was measured on another cluster.
    """
    file = Path(path) if path else beside(job, "profile.json")
    if path is None and not file.exists():
        return None
    profile = Profile.load(file)
    if profile.cluster_digest != cluster.digest:
        raise ConfigError(
            f"was measured on another cluster (digest '{profile.cluster_digest}', this one is "
            f"'{cluster.digest}')",
            where=str(file),
            do="Measure again with `pluribus profile`, or remove the file to plan by formulas.",
        )
    return profile


def load_calibration(path: str | None) -> Calibration | None:
    """The factors of a calibration.json."""
    return CalibrationRecord.load(path).factors if path else None


def beside(file: str, name: str) -> Path:
    """A file in the same folder as another."""
    return Path(file).parent / name
