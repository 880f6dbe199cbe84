"""Plan: who does what (`plan.json`).

A Plan is a list of pipelines; a pipeline is an ordered list of stages. Pipelines may be unlike:
other chips, other depth, other layers, another micro-batch size and count. The gradient of a
parameter is summed over every stage that holds it, each weighted by the tokens it saw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pluribus.core.errors import PlanError
from pluribus.core.io import digest, read_json, write_json
from pluribus.core.schema import from_table, to_table
from pluribus.spec.calibration import Calibration
from pluribus.spec.prediction import Alternative, Prediction
from pluribus.spec.profile import Profile

PLAN_VERSION = 1

Recompute = Literal["none", "selective", "full"]
ScheduleName = Literal["1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zbv"]
PassTimes = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A contiguous run of layers on like chips.

    Attributes:
        chips: addresses ``site/pool/node/chip``; ``data_parallel × tp × cp`` of them.
        layers: half-open range [first, end) into `Model.layers` (embedding and head included);
            of a stage with chunks, the first of them.
        tensor_parallel: chips that share each matrix.
        context_parallel: chips that share each sequence.
        expert_parallel: chips over which experts are dealt (inside data_parallel × tp).
        recompute: "full" keeps only each layer's input and runs forward again in backward;
            "selective" runs norms and activation functions again (`Layer.activation_bytes`).
        zero: ZeRO stage over the stage's data-parallel replicas (0–3).
        chunks: the ranges of layers of a stage with several virtual stages, by chunk.
    """

    chips: tuple[str, ...]
    layers: tuple[int, int]
    tensor_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    recompute: Recompute = "none"
    zero: int = 0
    chunks: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.chunks and self.chunks[0] != self.layers:
            raise PlanError(
                f"the layers {list(self.layers)} of a stage are not those of its first chunk, "
                f"{list(self.chunks[0])}",
                do="Write the range of the first chunk as the stage's layers.",
            )

    @property
    def by_chunk(self) -> tuple[Stage, ...]:
        """The stage as one stage per chunk, each with its own layers."""
        if not self.chunks:
            return (self,)
        return tuple(replace(self, layers=layers, chunks=()) for layers in self.chunks)

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """The index of every layer the stage holds, by chunk."""
        ranges = self.chunks or (self.layers,)
        return tuple(i for layers in ranges for i in range(*layers))

    @property
    def num_layers(self) -> int:
        return sum(end - first for first, end in self.chunks or (self.layers,))

    @property
    def data_parallel(self) -> int:
        """Replicas inside the stage, among which micro-batches are dealt."""
        return len(self.chips) // (self.tensor_parallel * self.context_parallel)

    @cached_property
    def pool(self) -> str:
        """Address ``site/pool`` of the stage's chips."""
        return self.chips[0].rsplit("/", 2)[0]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """An ordered list of stages that together hold every layer once.

    Attributes:
        micro_batch_size: sequences per micro-batch.
        micro_batches: micro-batches per optimiser step.
        virtual_stages: chunks of layers per stage: any number if interleaved, two in ZBV.
        pass_times: of a forward, the gradients of the input and of the weight, and a message;
            only their ratios matter. The order of ZB-H2 is made for them.
    """

    stages: tuple[Stage, ...]
    micro_batch_size: int
    micro_batches: int
    schedule: ScheduleName = "1f1b"
    virtual_stages: int = 1
    pass_times: PassTimes = (1.0, 1.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        name, chunks = self.schedule, self.virtual_stages
        if name == "zbv" and chunks != 2:
            raise PlanError(
                f"ZBV with {chunks} virtual stages", do="Write virtual_stages = 2 with zbv."
            )
        if name not in ("interleaved", "zbv") and chunks != 1:
            raise PlanError(
                f"{name} with {chunks} virtual stages",
                do="Write virtual_stages = 1, or schedule = interleaved.",
            )
        if any(len(stage.chunks or (stage.layers,)) != chunks for stage in self.stages):
            raise PlanError(
                f"a stage of a pipeline of {chunks} virtual stages has another number of chunks",
                do=f"Write {chunks} ranges of layers as the chunks of each stage.",
            )
        if name == "interleaved" and self.rounds % len(self.stages):
            raise PlanError(
                f"{self.rounds} micro-batches over {len(self.stages)} interleaved stages",
                do="Write a multiple of the number of stages, or schedule = 1f1b.",
            )
        if min(self.pass_times[:3]) <= 0 or self.pass_times[3] < 0:
            raise PlanError(
                f"pass times {list(self.pass_times)}",
                do="Write times above zero; that of a message may be zero.",
            )

    @property
    def sequences(self) -> int:
        """Sequences per optimiser step."""
        return self.micro_batch_size * self.micro_batches

    @property
    def num_chips(self) -> int:
        return sum(len(stage.chips) for stage in self.stages)

    @cached_property
    def replicas(self) -> int:
        """Replicas that every stage has: they work side by side, each as a pipeline would."""
        return math.gcd(*(stage.data_parallel for stage in self.stages)) or 1

    @property
    def rounds(self) -> int:
        """Micro-batches that one of the `replicas` works through in a step."""
        return math.ceil(self.micro_batches / self.replicas)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Versioned and self-contained: it carries its Job and Cluster, and names them by digest.

    Attributes:
        job: the job as a table (`Job.from_table`); paths relative to `directory`.
        cluster: the cluster as a table (`Cluster.from_table`).
        model_config: the model's config.json.
        directory: folder the job's paths are relative to.
        profile: the measured facts it was planned with, if any.
        calibration: the cluster's factors it was planned with, if any.
        prediction: what `predict` said of it.
        alternatives: the plans that were weighed, best first.
        explanation: one line per thing the planner wants the user to know.
        lower_bound_seconds: a step proven to be out of reach of every plan of the search's space,
            by the same predictor; None where nothing was proven.
        node_values: per pool, about how many seconds of a step one more node would save, from the
            dual values of the master problem.
    """

    pipelines: tuple[Pipeline, ...]
    job: dict[str, Any]
    job_digest: str
    cluster: dict[str, Any]
    cluster_digest: str
    model_config: dict[str, Any]
    directory: str = field(default=".", compare=False)
    profile: Profile | None = None
    calibration: Calibration | None = None
    prediction: Prediction | None = None
    alternatives: tuple[Alternative, ...] = ()
    explanation: tuple[str, ...] = ()
    lower_bound_seconds: float | None = None
    node_values: dict[str, float] = field(default_factory=dict)
    version: int = field(default=PLAN_VERSION)

    def __post_init__(self) -> None:
        if self.version != PLAN_VERSION:
            raise _other_version(self.version)
        if not self.pipelines:
            raise PlanError("the plan has no pipeline", do="Plan again: pluribus plan job.toml.")

    @property
    def stages(self) -> Iterator[tuple[int, int, Stage]]:
        """(pipeline index, stage index, stage), in order."""
        for p, pipeline in enumerate(self.pipelines):
            for s, stage in enumerate(pipeline.stages):
                yield p, s, stage

    @property
    def chips(self) -> tuple[str, ...]:
        """Every chip the plan uses; the position of a chip is its rank."""
        return tuple(chip for _, _, stage in self.stages for chip in stage.chips)

    @property
    def global_batch(self) -> int:
        """Sequences per optimiser step."""
        return sum(pipeline.sequences for pipeline in self.pipelines)

    @property
    def gap(self) -> float | None:
        """By how much the predicted step is above the proven bound: 0.01 is one percent."""
        if self.lower_bound_seconds is None or self.prediction is None:
            return None
        return self.prediction.step_seconds.mid / self.lower_bound_seconds - 1

    @cached_property
    def digest(self) -> str:
        bare = replace(
            self,
            directory=".",
            profile=None,
            calibration=None,
            prediction=None,
            alternatives=(),
            explanation=(),
            lower_bound_seconds=None,
            node_values={},
        )
        return digest(to_table(bare))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes plan.json; its folder is named relative to the file, so both can move."""
        here = Path(path).absolute().parent
        directory = os.path.relpath(Path(self.directory).absolute(), here)
        write_json(path, to_table(replace(self, directory=directory)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan.json.

        Raises:
            ConfigError, PlanError: not a plan of this version.
        """
        table = read_json(path)
        # Before its keys: another version may have other ones.
        version = table.get("version", PLAN_VERSION) if isinstance(table, dict) else PLAN_VERSION
        if version != PLAN_VERSION:
            raise _other_version(version, str(path))
        plan = from_table(cls, table, file=str(path))
        directory = os.path.normpath(Path(path).parent / plan.directory)
        return replace(plan, directory=directory)


def _other_version(version: Any, where: str = "") -> PlanError:
    return PlanError(
        f"plan version {version} is not {PLAN_VERSION}", where=where,
        do="Plan again with this version of Pluribus: pluribus plan job.toml.",
    )  # fmt: skip
