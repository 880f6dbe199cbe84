"""Job: what to train, on what data, how far, and what "best" means (`job.toml`)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pluribus.core.errors import ConfigError
from pluribus.core.io import digest, read_toml
from pluribus.core.schema import from_table, to_table
from pluribus.core.units import parse_duration

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """`[model]`: a config.json, or a Hugging Face directory to start from."""

    config: str


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """`[data]`: exactly one of token shards or text files, as glob patterns.

    Attributes:
        tokens: token shards written by Pluribus, e.g. ``"corpus/*.bin"``.
        text: UTF-8 text files, e.g. ``"books/**/*.txt"``; tokenised on first use.
        tokenizer: the tokenizer.json of the tokens, kept with every checkpoint; for `text`, one
            is trained on the text when absent.
    """

    tokens: str | None = None
    text: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.text is None):
            raise ConfigError(
                "needs exactly one of 'tokens' and 'text'",
                do='Write tokens = "path/*.bin" or text = "path/**/*.txt".',
            )


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """`[train]`: lengths in tokens, `learning_rate` per AdamW step, seeds for a repeatable run."""

    sequence_length: int
    global_batch_tokens: int
    steps: int | None = None
    tokens: int | None = None
    precision: Precision = "bf16"
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    clip_gradient_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "sequence_length", "global_batch_tokens", "learning_rate")
        if self.global_batch_tokens % self.sequence_length:
            low = self.global_batch_tokens // self.sequence_length * self.sequence_length
            near = f"{low} or {low + self.sequence_length}" if low else str(self.sequence_length)
            raise ConfigError(
                f"global_batch_tokens {self.global_batch_tokens} is not a multiple of "
                f"sequence_length {self.sequence_length}",
                do=f"Write global_batch_tokens = {near}.",
            )
        if (self.steps is None) == (self.tokens is None):
            raise ConfigError("needs exactly one of 'steps' and 'tokens'", do="Write steps = 1000.")
        if self.num_steps < 1:
            raise ConfigError(
                f"stops before the first step (steps {self.steps}, tokens {self.tokens})",
                do=f"Ask for at least one step of {self.global_batch_tokens} tokens.",
            )
        for name in ("warmup_steps", "weight_decay", "clip_gradient_norm", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}", do="Write zero or more.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}", do="Write a number in [0, 1)."
                )

    @property
    def global_batch(self) -> int:
        """Sequences per optimiser step."""
        return self.global_batch_tokens // self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimiser steps until the job's stop."""
        if self.steps is not None:
            return self.steps
        return (self.tokens or 0) // self.global_batch_tokens


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """``objective = {deadline = "72h"}``: the cheapest plan that ends in time."""

    deadline: str

    def __post_init__(self) -> None:
        parse_duration(self.deadline)

    @property
    def seconds(self) -> float:
        return parse_duration(self.deadline)


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """`[plan]`: what the planner optimises and what it may use."""

    objective: Literal["time", "money"] | Deadline = "time"
    micro_batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    recompute: Literal["auto", "none", "full"] = "auto"

    def __post_init__(self) -> None:
        if not self.micro_batch_sizes or min(self.micro_batch_sizes) < 1:
            raise ConfigError(
                f"micro_batch_sizes is {list(self.micro_batch_sizes)}",
                do="List whole numbers from 1, e.g. [1, 2, 4].",
            )


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """`[store]`: where checkpoints go, and how often (in steps; 0: only at the end).

    Attributes:
        tiers: fastest first; a local directory is the tier this version writes to.
        checkpoint_every_steps: steps between checkpoints.
    """

    tiers: tuple[str, ...] = ("checkpoints",)
    checkpoint_every_steps: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint_every_steps < 0:
            raise ConfigError(
                f"checkpoint_every_steps is {self.checkpoint_every_steps}",
                do="Write zero or more.",
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job. Relative paths in it are relative to `directory`.

    Attributes:
        directory: the folder of the job file; not part of the digest.
    """

    model: ModelSpec
    data: DataSpec
    train: TrainSpec
    plan: PlanSpec = field(default_factory=PlanSpec)
    store: StoreSpec = field(default_factory=StoreSpec)
    directory: str = field(default=".", compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Job:
        """Reads a job.toml; `ConfigError` names file, key and value of any mistake."""
        path = Path(path)
        return cls.from_table(read_toml(path), file=str(path), directory=str(path.parent))

    @classmethod
    def from_table(cls, table: dict[str, Any], *, file: str, directory: str = ".") -> Job:
        if isinstance(table, dict) and "directory" in table:
            raise ConfigError("unknown key 'directory'", where=file, do="Remove the key.")
        return from_table(cls, {**table, "directory": directory}, file=file)

    def to_table(self) -> dict[str, Any]:
        table = to_table(self)
        del table["directory"]
        return table

    @cached_property
    def digest(self) -> str:
        # Read back first: 1 and 1.0, equal to a dataclass, then digest alike.
        return digest(Job.from_table(self.to_table(), file="job").to_table())

    def resolve(self, path: str) -> Path:
        """A path of the job file, made absolute against the job's folder."""
        return (Path(self.directory) / Path(path).expanduser()).absolute()


def _positive(spec: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(spec, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(spec, name)}", do="Write a number above zero.")
