"""A run: one rank per chip, a record of what happened, and checkpoints that are whole or absent.

A run's folder holds ``plan.json``, ``events.jsonl`` (see `spec.run`), ``rank-N.log``, ``data/``
and the checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluribus.comm.backend import NAME as PLURIBUS
from pluribus.comm.codecs.registry import codec as codec_named
from pluribus.comm.fabric import BACKEND, BACKENDS, host_store
from pluribus.comm.launch import RankProcess, Ranks
from pluribus.core.errors import (
    CheckpointError,
    ConfigError,
    PlanError,
    PluribusError,
    nearest,
    sentence,
)
from pluribus.core.io import digest
from pluribus.core.schema import from_table, to_table
from pluribus.nn.config import DecoderConfig
from pluribus.plan.validate import require_valid
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan
from pluribus.spec.run import StepEvent, drop_torn_line
from pluribus.store.checkpoint import PartManifest, finish
from pluribus.store.manifest import latest, read_manifest, step_directory, verify
from pluribus.train.data import PreparedData, prepare_data
from pluribus.train.lanes import Lanes

# Ranks that neither step nor save for this long, or this many predicted steps, are hung; a first
# step may compile kernels.
_SILENCE_SECONDS = 600.0
_SILENCE_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How far and how loudly.

    Attributes:
        steps: stop after this many steps in this call; None runs to the job's stop.
        checkpoints: write them; off for short measurements.
        resume: go on from the folder's newest checkpoint.
        timeline_every: every so many steps, from the second on, all ranks report when each
            action ran.
        backend: what ranks talk over, one of `comm.fabric.BACKENDS`.
        codec: of sums over slow hops, e.g. "int8" (with error feedback); needs our own backend.
            Slow are hops between sites; in a plan of one site, those between its pools.
    """

    steps: int | None = None
    checkpoints: bool = True
    resume: bool = True
    timeline_every: int = 5
    backend: str = BACKEND
    codec: str = "none"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(
                f"no backend is named '{self.backend}'",
                do=sentence(nearest(self.backend, BACKENDS)),
            )
        codec_named(self.codec)  # raises if there is none
        if self.codec != "none" and self.backend != PLURIBUS:
            raise ConfigError(
                f"{self.backend} has no codec '{self.codec}'", do=f"Add --backend {PLURIBUS}."
            )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        stopped: the user asked it to stop before the job's end.
        checkpoint: the newest whole one.
    """

    folder: Path
    steps: tuple[StepEvent, ...]
    stopped: bool
    checkpoint: Path | None


@dataclass
class _Recorder:
    """Writes the run's events, finishes checkpoints when their last part is there."""

    folder: Path
    plan: Plan
    setting: Setting
    data: PreparedData
    listener: Callable[[dict[str, Any]], None]
    root: Path
    codec: str
    steps: list[StepEvent] = field(default_factory=list)
    parts: dict[int, list[PartManifest]] = field(default_factory=dict)

    def write(self, event: dict[str, Any]) -> None:
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self.listener(event)

    def take(self, rank: int, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "part":
            self._part(event)
            return
        if kind == "step":
            fields = {key: value for key, value in event.items() if key != "event"}
            self.steps.append(from_table(StepEvent, fields, file="events.jsonl"))
        self.write({**event, "rank": rank})

    def _part(self, event: dict[str, Any]) -> None:
        step = event["step"]
        manifest = from_table(PartManifest, event["manifest"], file="checkpoint part")
        self.parts.setdefault(step, []).append(manifest)
        all_write = self.codec != "none"  # each rank has residuals of its own
        wanted = self.plan.chips if all_write else self.plan.pipelines[0].stages
        if len(self.parts[step]) < len(wanted):
            return
        final = step_directory(self.root, step)
        finish(
            Path(event["folder"]),
            final,
            self.parts.pop(step),
            config=self.plan.model_config,
            tokenizer_path=self.data.tokenizer,
            training={
                "step": step,
                "tokens": step * self.setting.job.train.global_batch_tokens,
                "job_digest": self.plan.job_digest,
                **({"residuals": _hops_digest(self.plan, self.codec)} if all_write else {}),
            },
        )
        self.write({"event": "checkpoint", "step": step, "path": str(final)})


class StopRequest:
    """Asks runs to end after their current step; Ctrl-C and SIGTERM do, a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        self._tell: list[Callable[[], None]] = []

    def connect(self, tell: Callable[[], None]) -> None:
        """``tell`` is called when the stop is asked for; at once if it was already."""
        self._tell.append(tell)
        if self.asked:
            tell()

    def ask(self) -> None:
        self.asked = True
        for tell in self._tell:
            tell()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens to signals meanwhile; outside the main thread they are not ours."""

        def handle(*_: object) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.ask()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(
    plan: Plan,
    folder: Path | str,
    *,
    options: RunOptions | None = None,
    listener: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
    stop: StopRequest | None = None,
) -> RunResult:
    """Executes a plan on this machine.

    Args:
        plan: what to run; it carries its job and cluster.
        folder: of the run.
        listener: gets every event as it happens.
        progress: gets a line for each long thing before the first step.
        stop: ends the run from elsewhere, as Ctrl-C does.

    Returns:
        How it ended. Ctrl-C ends it after the current step, with a checkpoint.

    Raises:
        PlanError: the plan asks for what this version or machine cannot do.
        DataError, CheckpointError: see `prepare_data` and `verify`.
        RankError: a rank died; names it and the last checkpoint.
    """
    options = options or RunOptions()
    folder = Path(folder).absolute()
    setting = Setting.of_plan(plan)
    require_valid(plan, setting)
    _check_runnable(plan, setting)
    data = prepare_data(setting.job, setting.model.vocab_size, folder, progress)
    root = _checkpoint_root(setting, folder)
    start_from, start_step = _start(setting, root, options)
    until = setting.job.train.num_steps
    if options.steps is not None:
        until = min(until, start_step + options.steps)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in root.glob(".*.partial"):
        shutil.rmtree(torn)
    plan.save(folder / "plan.json")
    drop_torn_line(folder / "events.jsonl")
    recorder = _Recorder(folder, plan, setting, data, listener, root, options.codec)
    recorder.write(
        {"event": "start", "plan": plan.digest, "step": start_step, "unix_time": time.time()}
    )
    progress(f"starting {len(plan.chips)} ranks")
    predicted = plan.prediction.step_seconds.mid if plan.prediction else 0.0
    silence = max(_SILENCE_SECONDS, _SILENCE_STEPS * predicted)
    store, port = host_store(timeout=silence)
    config = {
        "plan": to_table(plan),
        "port": port,
        "timeout": silence,
        "shards": data.shards,
        "start_from": str(start_from) if start_from else None,
        "start_step": start_step,
        "until": until,
        "checkpoint_root": str(root) if options.checkpoints else None,
        "timeline_every": options.timeline_every,
        "backend": options.backend,
        "codec": options.codec,
        "islands": _islands(plan, options.codec),
        "residuals": _has_residuals(start_from, start_step, plan, options.codec),
    }
    stop = stop or StopRequest()
    with (
        Ranks("pluribus.train.worker", _processes(plan, setting, config), folder) as ranks,
        stop.on_signals(),
    ):
        stop.connect(lambda: ranks.tell(0, "stop"))
        try:
            for rank, event in ranks.events(timeout=silence):
                recorder.take(rank, event)
        except PluribusError as error:
            raise _with_checkpoint(error, root) from None
    del store  # held until the last rank has left
    recorder.write({"event": "end", "stopped": stop.asked})
    return RunResult(
        folder=folder,
        steps=tuple(recorder.steps),
        stopped=stop.asked,
        checkpoint=latest(root),
    )


def _check_runnable(plan: Plan, setting: Setting) -> None:
    Lanes.of_plan(plan)
    for p, pipeline in enumerate(plan.pipelines):
        if pipeline.schedule not in ("1f1b", "gpipe"):
            raise PlanError(
                f"pipeline {p} has the schedule {pipeline.schedule}; this version predicts it but "
                "runs 1f1b and gpipe",
                where="plan.json",
                do="Plan with schedule = 1f1b, or use the plan as advice.",
            )
    if any(stage.recompute == "selective" for _, _, stage in plan.stages):
        raise PlanError(
            "the plan recomputes selectively; this version predicts it but runs none and full",
            where="plan.json",
            do='Plan with recompute = "none" or "full".',
        )
    DecoderConfig.from_hf(plan.model_config, "config.json")
    precision = setting.precision
    if precision == "fp16":
        raise PlanError(
            "fp16 needs loss scaling, which this version does not do",
            where="job.toml [train.precision]",
            do='Write precision = "bf16" or "fp32".',
        )
    nodes = {
        (stage.pool, chip.split("/")[2]) for _, _, stage in plan.stages for chip in stage.chips
    }
    for pool, node in nodes:
        if node != "0":
            raise PlanError(
                f"the plan uses several nodes of {pool}; this version starts ranks on one machine",
                where="plan.json",
                do="Plan for pools with nodes = 1, or use the plan as advice.",
            )


def _checkpoint_root(setting: Setting, folder: Path) -> Path:
    """The first tier, a directory: relative to the run's folder."""
    tier = setting.job.store.tiers[0]
    if "://" in tier or tier in ("ram", "peer"):
        raise PlanError(
            f"tier '{tier}' is not a directory",
            where="job.toml [store.tiers]",
            do='This version writes checkpoints to a directory: tiers = ["checkpoints"].',
        )
    return folder / Path(tier).expanduser()


def _start(setting: Setting, root: Path, options: RunOptions) -> tuple[Path | None, int]:
    """Where the first weights come from, and the steps already made."""
    newest = latest(root) if options.resume else None
    if newest is not None:
        verify(newest)
        step = read_manifest(newest).training["step"]
        if step >= setting.job.train.num_steps:
            raise CheckpointError(
                f"the run has made all its {step} steps already",
                where=str(newest),
                do="Raise [train] steps in the job and plan again, or train into a new folder.",
            )
        return newest, step
    source = setting.job.resolve(setting.job.model.config)
    if source.is_dir() and any(source.glob("*.safetensors")):
        return source, 0
    return None, 0


def _islands(plan: Plan, codec: str) -> list[str]:
    """Per rank the name of what it is near to; empty: its host."""
    sites = [chip.split("/")[0] for chip in plan.chips]
    if len(set(sites)) > 1:
        return sites
    if codec != "none":
        return [chip.rsplit("/", 2)[0] for chip in plan.chips]
    return [""] * len(sites)


def _hops_digest(plan: Plan, codec: str) -> str:
    """Of all that decides which rank's codec codes what."""
    stages = [(p, stage.chips, stage.layers) for p, _, stage in plan.stages]
    return digest([codec, stages])


def _has_residuals(start_from: Path | None, step: int, plan: Plan, codec: str) -> bool:
    """Whether the checkpoint's residuals are those of this plan; else they are left, and at most
    one step's rounding with them."""
    if start_from is None or step == 0 or codec == "none":
        return False
    return read_manifest(start_from).training.get("residuals") == _hops_digest(plan, codec)


def _processes(plan: Plan, setting: Setting, config: dict[str, Any]) -> list[RankProcess]:
    processes = []
    for rank, chip in enumerate(plan.chips):
        pool = setting.pool(chip.rsplit("/", 2)[0])
        processes.append(
            RankProcess(
                rank=rank,
                chip=chip,
                environment=pool.environment,
                cores=pool.cores,
                config=config,
            )
        )
    return processes


def _with_checkpoint(error: PluribusError, root: Path) -> PluribusError:
    """The same error, telling what is left to go on from."""
    newest = latest(root)
    last = f"The last checkpoint is whole: {newest}." if newest else "There is no checkpoint yet."
    error.do = f"{error.do} {last}".strip()
    return error
