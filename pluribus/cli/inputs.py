"""The files commands read: job, cluster and profile, found beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus.core.errors import ConfigError
from pluribus.hardware.cluster import Cluster
from pluribus.spec.calibration import Calibration, CalibrationRecord
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile


def add_job(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The job file, and the cluster beside it."""
    count = None if required else "?"
    parser.add_argument("job", nargs=count, help="the job file, e.g. job.toml")
    parser.add_argument("--cluster", help="cluster file (cluster.toml beside the job file)")


def load_job(arguments: argparse.Namespace) -> tuple[Job, Cluster]:
    """The job and its cluster."""
    job = Job.load(arguments.job)
    return job, Cluster.load(arguments.cluster or beside(arguments.job, "cluster.toml"))


def load_profile(path: str | None, job_file: str, job: Job, cluster: Cluster) -> Profile | None:
    """The named profile, or the one beside the job file if there is one.

    Raises:
        ConfigError: it was measured on another cluster, or, if it was imported, on none of this
            cluster's chips or for other jobs.
    """
    file = Path(path) if path else beside(job_file, "profile.json")
    if path is None and not file.exists():
        return None
    profile = Profile.load(file)
    if not profile.cluster_digest:
        _check_imported(profile, str(file), job, cluster)
    elif profile.cluster_digest != cluster.digest:
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


def _check_imported(profile: Profile, file: str, job: Job, cluster: Cluster) -> None:
    asked = (job.train.sequence_length, job.train.precision)
    shapes = {(time.sequence_length, time.precision) for time in profile.layers}
    if asked not in shapes:
        measured = ", ".join(f"{length} tokens in {kind}" for length, kind in sorted(shapes))
        raise ConfigError(
            f"has no times for sequences of {asked[0]} tokens in {asked[1]}",
            where=f"{file} [layers]",
            do=f"It has {measured or 'none'}: change [train] of the job, or import other times.",
        )
    chips = {time.chip for time in profile.layers}
    own = {pool.chip.key for pool in cluster.pools}
    if not chips & own:
        raise ConfigError(
            f"has times of {', '.join(sorted(chips))}, but the cluster's chips are "
            f"{', '.join(sorted(own))}",
            where=f"{file} [layers]",
            do="Give a chip in cluster.toml the key of the measured one.",
        )


def beside(file: str, name: str) -> Path:
    """A file in the same folder as another."""
    return Path(file).parent / name
