"""Measured runs (`runs.toml`): what `pluribus calibrate` fits a cluster's factors to."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json, read_toml
from pluribus.core.schema import from_table
from pluribus.spec.run import read_events

MOST_RUNS = 8

# The first step of a run pays for caches and allocations that later ones find ready.
WARM_UP_STEPS = 1


@dataclass(frozen=True, kw_only=True)
class MeasuredSpec:
    """A `[[run]]`: a plan and what its step took, or a layout of a job on one pool.

    Attributes:
        plan: a plan.json.
        job, cluster: their files, where there is no plan.
        pool: address of the pool the layout is on.
        layout: degrees and schedule, by the names of `predict.regular.Layout`.
        program: what trained: ``pluribus``, ``megatron``, ``megatron-2021`` or ``fsdp``.
        seconds: of one optimiser step.
    """

    seconds: float
    plan: str | None = None
    job: str | None = None
    cluster: str | None = None
    pool: str | None = None
    layout: dict[str, Any] = field(default_factory=dict)
    program: str = "pluribus"

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"seconds is {self.seconds}", do="Write a number above zero.")
        regular = [part is not None for part in (self.job, self.cluster, self.pool)]
        if self.plan is None and not all(regular):
            raise ConfigError(
                "a run needs a plan, or a job, a cluster and a pool",
                do='Write plan = "plan.json", or job = "job.toml", cluster = "cluster.toml", '
                'pool = "site/pool" and a layout.',
            )
        if self.plan is not None and any(regular):
            raise ConfigError(
                "a run has both a plan and a job, cluster or pool", do="Keep one of the two."
            )


def load_measured(path: str | os.PathLike[str]) -> list[tuple[str, MeasuredSpec]]:
    """The runs of a file, or the one of a run folder; paths in them relative to the file.

    Returns:
        (name, run) of each.

    Raises:
        ConfigError: names file, key and value of any mistake.
    """
    path = Path(path)
    if path.is_dir():
        return [(path.name, _of_folder(path))]
    table = read_json(path) if path.suffix == ".json" else read_toml(path)
    entries = table.get("run") if isinstance(table, dict) else None
    if not isinstance(entries, list) or not entries or len(table) > 1:
        raise ConfigError(
            "is not a list of measured runs", where=str(path),
            do="Write a [[run]] for each, with its plan and its seconds.",
        )  # fmt: skip
    runs = []
    for i, entry in enumerate(entries):
        run = from_table(MeasuredSpec, entry, file=str(path), at=f"run[{i}]")
        files = {
            name: str(path.parent / value)
            for name in ("plan", "job", "cluster")
            if (value := getattr(run, name)) is not None
        }
        runs.append((f"{path.name} run[{i}]", replace(run, **files)))
    return runs


def _of_folder(folder: Path) -> MeasuredSpec:
    """The median step of a run of `pluribus train`, the first ones left out."""
    events = read_events(folder / "events.jsonl")
    seconds = [event["seconds"] for event in events if event.get("event") == "step"]
    if len(seconds) <= WARM_UP_STEPS:
        raise ConfigError(
            f"has {len(seconds)} steps; the first of a run is not typical", where=str(folder),
            do="Train for a few more steps.",
        )  # fmt: skip
    return MeasuredSpec(
        plan=str(folder / "plan.json"), seconds=statistics.median(seconds[WARM_UP_STEPS:])
    )
