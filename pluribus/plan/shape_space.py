"""Every shape in which a team of pools can form like pipelines, and bounds on their steps.

Some teams have tens of thousands of shapes, of which a few have their layers cut. So they are rows
of arrays until then, and the bounds take many rows at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.table import StageKind, StageTable
from pluribus.predict.setting import Setting

LEFT_OVER = 16  # groups of chips of a team up to which some may be left over

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Shape:
    """How a team's chips form like pipelines.

    Attributes:
        pools: addresses in pipeline order.
        stages: per pool, stages per pipeline.
        tensor_parallel: per pool, chips per stage.
        pipelines: how many such pipelines.
    """

    pools: tuple[str, ...]
    stages: tuple[int, ...]
    tensor_parallel: tuple[int, ...]
    pipelines: int
    micro_batch_size: int
    recompute: str

    @property
    def depth(self) -> int:
        return sum(self.stages)

    def reordered(self, order: Sequence[int]) -> Shape:
        """The same stages with the pools in another order along the pipeline."""
        return replace(
            self,
            pools=tuple(self.pools[i] for i in order),
            stages=tuple(self.stages[i] for i in order),
            tensor_parallel=tuple(self.tensor_parallel[i] for i in order),
        )

    def micro_batches(self, sequences: int) -> int:
        """Of the busiest pipeline."""
        return max(1, math.ceil(sequences / (self.pipelines * self.micro_batch_size)))


@dataclass(frozen=True, eq=False)
class ShapeSpace:
    """The shapes of a team, a row each.

    Attributes:
        table: prices of a kind of stage.
        degrees: per pool of the team, the tensor-parallel degrees it may have.
        sequences: per step.
    """

    setting: Setting
    table: Callable[[StageKind], StageTable]
    team: tuple[str, ...]
    degrees: tuple[tuple[int, ...], ...]
    micro_batch_size: int
    sequences: int
    _quickest: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """Whether stages recompute."""
        asked = self.setting.job.plan.recompute
        return ("none", "full") if asked == "auto" else (asked,)

    @cached_property
    def ways(self) -> tuple[tuple[int, ...], ...]:
        """A degree for every pool, in every way."""
        return tuple(itertools.product(*self.degrees))

    def _counts(self) -> Iterator[tuple[int, ...]]:
        """Of every shape with either recompute: its way, how many pipelines, each pool's stages."""
        pools = [self.setting.pool(address) for address in self.team]
        num_layers = len(self.setting.model.layers)
        for way, degrees in enumerate(self.ways):
            groups = [p.num_chips // tp for p, tp in zip(pools, degrees, strict=True)]
            most = min(*groups, self.sequences // self.micro_batch_size)
            # More pipelines of the same depth use more chips at the same speed each: only the
            # largest count of each depth is weighed, which is where some pool's depth changes.
            counts = {g // depth for g in groups for depth in range(1, num_layers + 1)}
            for pipelines in sorted({min(count, most) for count in counts} - {0}):
                deepest = [min(g // pipelines, num_layers) for g in groups]
                # Few chips may do better without some of them: every further stage is a message.
                least = [1] * len(deepest) if sum(groups) <= LEFT_OVER else deepest
                each = (range(a, b + 1) for a, b in zip(least, deepest, strict=True))
                for stages in itertools.product(*each):
                    yield way, pipelines, *stages

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        """[rows, 2 + pools] see `_counts`, once for each mode."""
        rows = np.array(list(self._counts()), dtype=np.int64).reshape(-1, 2 + len(self.team))
        return np.repeat(rows, len(self.modes), axis=0)

    @property
    def _way(self) -> NDArray[np.int64]:
        return self._table[:, 0]

    @property
    def _stages(self) -> NDArray[np.int64]:
        return self._table[:, 2:]

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Shape]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Shape:
        way, pipelines, *stages = self._table[row].tolist()
        mode = self.modes[row % len(self.modes)]
        return Shape(
            self.team, tuple(stages), self.ways[way], pipelines, self.micro_batch_size, mode
        )

    @cached_property
    def _micro_batches(self) -> NDArray[np.int64]:
        """[rows] of the busiest pipeline."""
        each = self.sequences / (self._table[:, 1] * self.micro_batch_size)
        return np.maximum(1, np.ceil(each)).astype(np.int64)

    @cached_property
    def _kinds(self) -> tuple[StageKind, ...]:
        """Of every pool, degree and mode, modes innermost."""
        return tuple(
            StageKind(pool, tp, self.micro_batch_size, mode)
            for pool, degrees in zip(self.team, self.degrees, strict=True)
            for tp in degrees
            for mode in self.modes
        )

    @cached_property
    def _kinds_of_way(self) -> NDArray[np.intp]:
        """[ways, pools] positions in `_kinds`, in the first mode."""
        before = np.cumsum([0, *map(len, self.degrees)])[:-1]
        places = itertools.product(*(range(len(degrees)) for degrees in self.degrees))
        return (np.array(list(places)) + before) * len(self.modes)

    def _kinds_of(self, rows: Rows) -> NDArray[np.intp]:
        """[rows, pools] positions in `_kinds`."""
        return self._kinds_of_way[self._way[rows]] + (rows % len(self.modes))[:, None]

    @cached_property
    def quick(self) -> NDArray[np.float64]:
        """[rows] seconds. Were blocks divisible, every stage would take the same time τ, once per
        micro-batch.

        A kind needs at least r times the first kind's seconds for any block, so stages of it do
        at most τ ÷ r of the first kind's work: Σ stages · τ ÷ r ≥ seconds of all blocks on the
        first kind.
        """
        blocks = np.array([self.table(kind).block_seconds for kind in self._kinds])
        least = (blocks[:, None] / blocks[None]).min(axis=2)  # [kinds, first kinds]
        whole = np.array([float(seconds.sum()) for seconds in blocks])
        kinds, rate = self._kinds_of(np.arange(len(self))), np.zeros(len(self))
        for pool, stages in enumerate(self._stages.T):
            rate = rate + stages / least[kinds[:, pool], kinds[:, 0]]
        return self._micro_batches * whole[kinds[:, 0]] / rate

    def sharp(self, rows: Rows) -> NDArray[np.float64]:
        """[rows] seconds; infinite where a stage holds no layer. Blocks are whole, and a stage
        holds no more than its memory: the least τ at which the stages together take all blocks,
        then as many times as there are micro-batches."""
        size, kinds, times = len(self.team), self._kinds_of(rows), self._micro_batches[rows]
        counts = self._stages[rows].ravel()
        of = np.repeat(np.arange(len(counts)), counts)  # each stage's row and pool
        begins = np.cumsum(counts) - counts
        # Whatever the order, the j-th of these stages from the end holds at least j.
        holds = np.minimum(np.arange(len(of)) - begins[of] + 1, times[of // size])
        kind, row, first = kinds.ravel()[of], of // size, begins[::size]
        each, most = self._least_block[kind], self._most_layers(kind, holds)
        num_blocks = self.setting.model.num_blocks
        slowest = np.full(len(rows), np.inf)
        for pool in range(size):
            unit = self._least_block[kinds[:, pool]]
            low, high = np.ones(len(rows), np.int64), np.full(len(rows), num_blocks + 1)
            while (low < high).any():
                middle = (low + high) // 2
                # A hair more, so that n · t ÷ t counts as n whatever the rounding.
                taken = np.minimum((unit * middle * (1 + 1e-9))[row] // each, most)
                enough = np.add.reduceat(taken, first) >= num_blocks
                low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
            slowest = np.minimum(slowest, np.where(low <= num_blocks, unit * low, np.inf))
        held = np.isfinite(slowest) & (np.minimum.reduceat(most, first) > 0)
        through = np.array([self._through(row) for row in rows.tolist()])
        return np.where(held, (times - 1) * np.where(held, slowest, 0.0) + through, np.inf)

    def _through(self, row: int) -> float:
        """Seconds of all layers, each on the quickest of the row's kinds."""
        key = int(self._way[row]), row % len(self.modes)
        if key not in self._quickest:
            kinds = self._kinds_of(np.array([row]))[0]
            seconds = [self.table(self._kinds[kind]).layer_seconds for kind in kinds]
            self._quickest[key] = float(np.min(seconds, axis=0).sum())
        return self._quickest[key]

    @cached_property
    def _least_block(self) -> NDArray[np.float64]:
        """[kinds] seconds of the cheapest transformer block."""
        return np.array([self.table(kind).least_block_seconds for kind in self._kinds])

    @cached_property
    def _most(self) -> NDArray[np.int64]:
        """[kinds, micro-batches held] the longest run that fits, −1 where nobody asked."""
        return np.full((len(self._kinds), len(self.setting.model.layers) + 1), -1)

    def _most_layers(self, kind: NDArray[np.intp], held: NDArray[np.int64]) -> NDArray[np.int64]:
        unknown = self._most[kind, held] < 0
        for k, n in set(zip(kind[unknown].tolist(), held[unknown].tolist(), strict=True)):
            self._most[k, n] = self.table(self._kinds[k]).most_layers(n)
        return self._most[kind, held]
