"""`pluribus profile`: how fast each chip runs the job's layers, and how fast the links are."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from pluribus.cli.inputs import add_job, beside, load_job
from pluribus.cli.output import console, print_json, say
from pluribus.core.schema import to_table
from pluribus.core.units import format_bytes, format_seconds
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile

_OPERATOR_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--out", help="file to write (profile.json beside the job file)")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="also time single operators, so that other sizes are predicted from measurements",
    )
    parser.add_argument(
        "--from-aic",
        action="store_true",
        help="measure nothing: fill in what aiconfigurator-core knows of the cluster's chips",
    )
    parser.add_argument("--json", action="store_true", help="print the profile as JSON")


def run(arguments: argparse.Namespace) -> int:
    job, cluster = load_job(arguments)
    model = Model.from_config(job.resolve(job.model.config))
    out = Path(arguments.out) if arguments.out else beside(arguments.job, "profile.json")
    if arguments.from_aic:
        result = _filled(out, cluster, job, model)
    else:
        from pluribus.measure.profile import profile

        result = profile(
            cluster,
            job,
            model,
            progress=lambda line, share: say(f"{share:4.0%} {line}"),
            operator_seconds=_OPERATOR_SECONDS if arguments.operators else 0.0,
            log_folder=out.parent / "logs",
        )
    result.save(out)
    if arguments.json:
        print_json(to_table(result))
    else:
        print_profile(result)
        console.print(f"wrote {out}")
    return 0


def _filled(out: Path, cluster: Cluster, job: Job, model: Model) -> Profile:
    """The profile of this cluster at ``out``, or an empty one, with the package's tables."""
    from pluribus.measure.aic import fill_profile

    profile = Profile(cluster_digest=cluster.digest)
    if out.exists():
        before = Profile.load(out)
        profile = before if before.cluster_digest == cluster.digest else profile
    filled, unknown = fill_profile(profile, cluster, job, model)
    if unknown:
        say(f"not measured there, predicted by formula: {', '.join(unknown)}")
    return filled


def print_profile(profile: Profile) -> None:
    """What was measured, as tables; those without rows are left out."""
    layers = Table(title="Layers, one micro-batch", title_justify="left")
    for name in ("chip", "layer"):
        layers.add_column(name)
    for name in ("micro-batch", "forward", "backward", "spread"):
        layers.add_column(name, justify="right")
    for time in profile.layers:
        layers.add_row(
            time.chip,
            time.layer,
            f"{time.micro_batch} × {time.sequence_length}",
            format_seconds(time.forward),
            format_seconds(time.backward),
            f"±{time.spread:.0%}",
        )
    if profile.layers:
        console.print(layers)
    links = Table(title="Links", title_justify="left")
    links.add_column("between")
    links.add_column("operation")
    for name in ("latency", "bandwidth"):
        links.add_column(name, justify="right")
    for link in profile.links:
        links.add_row(
            " – ".join(link.between),
            link.operation.replace("_", " "),
            format_seconds(link.latency_s),
            f"{format_bytes(link.bytes_per_s)}/s",
        )
    if profile.links:
        console.print(links)
    operators = Table(title="Operators", title_justify="left")
    for name in ("chip", "operator", "precision"):
        operators.add_column(name)
    for name in ("rows", "spread"):
        operators.add_column(name, justify="right")
    for table in profile.operators:
        operators.add_row(
            table.chip,
            table.operator.replace("_", " "),
            table.precision,
            str(len(table.seconds)),
            f"±{table.spread:.0%}" if table.spread else "not said",
        )
    if profile.operators:
        console.print(operators)
    if profile.seconds:
        console.print(f"measured in {format_seconds(profile.seconds)}")
