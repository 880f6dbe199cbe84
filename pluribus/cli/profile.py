"""`pluribus profile`: how fast each chip runs the job's layers, and how fast the links are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from pluribus.cli.inputs import add_job, beside, load_job
from pluribus.cli.output import console, print_json, say
from pluribus.core.errors import ConfigError
from pluribus.core.io import write_json, write_text
from pluribus.core.schema import to_table
from pluribus.core.units import format_bytes, format_seconds
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile

if TYPE_CHECKING:
    from pluribus.measure.imported import Found

_OPERATOR_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser, required=False)
    parser.add_argument(
        "--out", help="file to write (profile.json beside the job; without a job, a folder)"
    )
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
    parser.add_argument(
        "--import", dest="imports", action="append", metavar="PATH", default=[],
        help="take measurements from a file or folder instead of measuring",
    )  # fmt: skip
    parser.add_argument("--model", help="which model to import, if the files hold several")
    parser.add_argument(
        "--chip", action="append", metavar="NAME=KEY", default=[],
        help="key of a chip by its name in the imported files",
    )  # fmt: skip
    parser.add_argument(
        "--sequence-length", type=int, help="of imported times that do not say it (2048)"
    )
    parser.add_argument("--precision", help="of imported times that do not say it (fp32)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.imports:
        return _import(arguments)
    if arguments.job is None:
        raise ConfigError(
            "no job file named", where="pluribus profile",
            do="Name the job to measure for, or --import PATH with measurements to take over.",
        )  # fmt: skip
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


def _import(arguments: argparse.Namespace) -> int:
    """With a job, a profile.json that serves it; without, everything that planning needs."""
    from pluribus.measure.imported import Defaults, find

    length, precision = arguments.sequence_length, arguments.precision
    given = {"sequence_length": length, "precision": precision}
    defaults = Defaults(**{key: value for key, value in given.items() if value is not None})
    found = find([Path(path) for path in arguments.imports], arguments.model, defaults)
    own = dict(_pair(text) for text in arguments.chip)
    if arguments.job:
        profile, notes, wrote = _import_for_job(arguments, found, own)
    else:
        profile, notes, wrote = _import_anew(arguments, found, own)
    if arguments.json:
        print_json(to_table(profile))
        return 0
    print_imported(profile)
    for note in [*notes, *(f"skipped {file}: no profile" for file in found.skipped)]:
        say(note)
    for file in wrote:
        console.print(f"wrote {file}")
    return 0


def _import_for_job(
    arguments: argparse.Namespace, found: Found, own: dict[str, str]
) -> tuple[Profile, list[str], list[Path]]:
    from pluribus.measure.imported import check_job, profile_of

    job, cluster = load_job(arguments)
    model = Model.from_config(job.resolve(job.model.config))
    chips = {pool.chip.key: pool.chip.key for pool in cluster.pools}
    profile = profile_of(found, {**chips, **own})
    notes = check_job(profile, found, job, model, cluster)
    out = Path(arguments.out) if arguments.out else beside(arguments.job, "profile.json")
    profile.save(out)
    return profile, notes, [out]


def _import_anew(
    arguments: argparse.Namespace, found: Found, own: dict[str, str]
) -> tuple[Profile, list[str], list[Path]]:
    from pluribus.measure.imported import profile_of
    from pluribus.measure.starter import starter_cluster, starter_config, starter_job

    folder = Path(arguments.out or "imported")
    names = ("config.json", "cluster.toml", "job.toml", "profile.json")
    for name in names:
        if (folder / name).exists():
            raise ConfigError(
                "exists already", where=str(folder / name),
                do="Name another folder with --out, or name its job.toml to import for that job.",
            )  # fmt: skip
    profile = profile_of(found, own)
    config = starter_config(profile, found.first)
    cluster = starter_cluster(profile, found.first)
    write_json(folder / "config.json", config)
    cluster.save(folder / "cluster.toml")
    write_text(folder / "job.toml", starter_job(found.first))
    profile.save(folder / "profile.json")
    notes = [
        "cluster.toml holds two nodes of every measured chip: say how many you have, then",
        f"pluribus plan {folder / 'job.toml'}",
    ]
    return profile, notes, [folder / name for name in names]


def _pair(text: str) -> tuple[str, str]:
    name, sign, key = text.partition("=")
    if not (name and sign and key):
        raise ConfigError(
            f"'{text}' is not NAME=KEY", where="--chip",
            do="Write the chip's name in the imported files and its key in cluster.toml.",
        )  # fmt: skip
    return name, key


def print_imported(profile: Profile) -> None:
    """What was imported, a line per chip and degree."""
    table = Table(title="Imported layer times", title_justify="left")
    for name in ("chip", "tensor-parallel"):
        table.add_column(name)
    for name in ("micro-batches", "rows"):
        table.add_column(name, justify="right")
    rows: dict[tuple[str, int], list[int]] = {}
    for time in profile.layers:
        rows.setdefault((time.chip, time.tensor_parallel), []).append(time.micro_batch)
    for (chip, tp), sizes in sorted(rows.items()):
        table.add_row(chip, str(tp), ", ".join(map(str, sorted(set(sizes)))), str(len(sizes)))
    console.print(table)
    console.print(
        f"{len(profile.sizes)} sizes of layers, {len(profile.curves)} link curves; from "
        f"{profile.source}"
    )


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
