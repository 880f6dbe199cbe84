"""What the search deals in: whole pipelines, before they have chips.

A `Column` is one pipeline: ordered stages, each a run of layers on some chips of one pool, and a
micro-batch size. A `PipelineClass` is a column with how often it is used and how many micro-batches
each use gets; a `Team` of classes is a complete plan without addresses. Placement turns a team into
pipelines on real chips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pluribus.spec.plan import Recompute, ScheduleName


@dataclass(frozen=True, order=True)
class StageKind:
    """Chips of one pool used one way; equal kinds price alike.

    Attributes:
        pool: address ``site/pool``.
        tensor_parallel, context_parallel, expert_parallel, zero, recompute: see `Stage`.
        data_parallel: replicas inside the stage, among which its micro-batches are dealt.
    """

    pool: str
    tensor_parallel: int = 1
    recompute: Recompute = "none"
    context_parallel: int = 1
    expert_parallel: int = 1
    zero: int = 0
    data_parallel: int = 1

    @property
    def num_chips(self) -> int:
        return self.tensor_parallel * self.context_parallel * self.data_parallel


@dataclass(frozen=True, order=True)
class StageChoice:
    """A stage of a column: a kind and the half-open range of layers it holds."""

    kind: StageKind
    layers: tuple[int, int]

    @property
    def num_layers(self) -> int:
        return self.layers[1] - self.layers[0]


@dataclass(frozen=True, order=True)
class Column:
    """One whole pipeline without addresses.

    Attributes:
        stages: in pipeline order; together they hold every layer once.
        micro_batch_size: sequences per micro-batch.
        schedule, virtual_stages: see `Pipeline`.
    """

    stages: tuple[StageChoice, ...]
    micro_batch_size: int
    schedule: ScheduleName = "1f1b"
    virtual_stages: int = 1

    # Columns are keys of many tables; hashing every stage each time costs more than the look-up.
    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.stages, self.micro_batch_size, self.schedule, self.virtual_stages))

    @cached_property
    def chips(self) -> dict[str, int]:
        """Chips it takes of each pool: its entries in the rows of the master problem."""
        counts: Counter[str] = Counter()
        for stage in self.stages:
            counts[stage.kind.pool] += stage.kind.num_chips
        return dict(counts)

    @property
    def num_chips(self) -> int:
        return sum(self.chips.values())

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools along the pipeline, neighbours merged."""
        pools = [stage.kind.pool for stage in self.stages]
        return tuple(p for i, p in enumerate(pools) if i == 0 or pools[i - 1] != p)


@dataclass(frozen=True, order=True)
class PipelineClass:
    """Like pipelines of a plan.

    Attributes:
        column: what each of them is.
        micro_batches: per pipeline, how many micro-batches it gets; its length is how many
            pipelines there are.
    """

    column: Column
    micro_batches: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.micro_batches)

    @property
    def sequences(self) -> int:
        """Sequences of a step that go through the class."""
        return self.column.micro_batch_size * sum(self.micro_batches)


Team = tuple[PipelineClass, ...]  # a complete plan without addresses


def chips_used(team: Sequence[PipelineClass]) -> dict[str, int]:
    """Chips a team takes of each pool."""
    counts: Counter[str] = Counter()
    for item in team:
        for pool, number in item.column.chips.items():
            counts[pool] += number * item.count
    return dict(counts)
