"""The best pipelines a team of pools can form together.

A team is an ordered choice of pools whose chips share pipelines. Its shape says how many like
pipelines there are, and per pool how many stages of how many tensor-parallel chips each has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pluribus.hardware.cluster import Pool
from pluribus.plan.split import even_split, min_max_split
from pluribus.plan.table import StageKind, StageTable
from pluribus.predict.collectives import message_seconds
from pluribus.predict.setting import Setting, boundary_bytes
from pluribus.spec.plan import Pipeline, Stage


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


@dataclass(frozen=True)
class Candidate:
    """A shape with its layers cut.

    Attributes:
        first: seconds of one micro-batch through the pipeline and back.
        each: seconds every further micro-batch adds: the slowest stage.
    """

    shape: Shape
    layers: tuple[tuple[int, int], ...]
    first: float
    each: float

    def seconds(self, micro_batches: int) -> float:
        """Seconds of the pipeline's step without gradient sums and update."""
        return self.first + (micro_batches - 1) * self.each


@dataclass(frozen=True)
class ShapeFinder:
    """Finds shapes in one setting; keeps the price tables it has made."""

    setting: Setting
    _tables: dict[StageKind, StageTable] = field(default_factory=dict, compare=False, repr=False)

    def table(self, kind: StageKind) -> StageTable:
        if kind not in self._tables:
            self._tables[kind] = StageTable(self.setting, kind)
        return self._tables[kind]

    @cached_property
    def usable_pools(self) -> tuple[Pool, ...]:
        """Pools whose chips have the job's precision."""
        return tuple(
            pool
            for pool in self.setting.cluster.pools
            if pool.chip.supports(self.setting.precision)
        )

    def tensor_parallel_degrees(self, pool: Pool) -> list[int]:
        """Degrees that stay inside a node and divide the model."""
        return [
            tp
            for tp in range(1, pool.chips_per_node + 1)
            if pool.chips_per_node % tp == 0
            and all(layer.supports_tp(tp) for layer in self.setting.model.layers)
        ]

    def best(
        self, team: tuple[str, ...], micro_batch_size: int, sequences: int, keep: int = 2
    ) -> list[Candidate]:
        """The fastest ways for a team to work through this many sequences per step.

        Shapes are visited from the most promising by a bound that no cut can beat, and the
        search ends when the bound passes what was found: the result is exact over the shapes.
        """
        bounded = sorted(
            ((self._bound(shape, sequences), i, shape) for i, shape in enumerate(
                self._shapes(team, micro_batch_size, sequences))),
            key=lambda item: item[:2],
        )  # fmt: skip
        found: list[tuple[float, int, Candidate]] = []
        for bound, i, shape in bounded:
            if len(found) >= keep and bound >= found[keep - 1][0]:
                break
            candidate = self.cut(shape, sequences)
            if candidate is not None:
                seconds = candidate.seconds(_micro_batches(shape, sequences))
                found.append((seconds, i, candidate))
                found.sort(key=lambda item: item[:2])
        return [candidate for _, _, candidate in found[:keep]]

    def cut(self, shape: Shape, sequences: int, *, even: bool = False) -> Candidate | None:
        """Cuts the layers over a shape's stages; None when they do not fit."""
        tables = self._stage_tables(shape)
        in_flight = _in_flight(shape, sequences)
        if shape.depth > len(self.setting.model.layers):
            return None
        costs = []
        for table, count in zip(tables, in_flight, strict=True):
            costs.append(np.where(table.overflow(count) <= 0, table.seconds, np.inf))
        if even:
            layers = even_split(len(self.setting.model.layers), shape.depth)
            if any(math.isinf(c[r]) for c, r in zip(costs, layers, strict=True)):
                return None
        else:
            cut = min_max_split(costs)
            if cut is None:
                return None
            layers = cut
        seconds = [float(t.seconds[r]) for t, r in zip(tables, layers, strict=True)]
        first = sum(seconds) + 2 * self._messages(shape)
        return Candidate(shape, layers, first, max(seconds))

    def least_overflow(self, shape: Shape, sequences: int) -> tuple[float, str]:
        """By how many bytes the best cut still overflows, and the pool where."""
        tables = self._stage_tables(shape)
        in_flight = _in_flight(shape, sequences)
        costs = [t.overflow(n) for t, n in zip(tables, in_flight, strict=True)]
        layers = min_max_split(costs)
        if layers is None:
            return math.inf, shape.pools[0]
        over = [float(c[r]) for c, r in zip(costs, layers, strict=True)]
        worst = max(range(len(over)), key=over.__getitem__)
        return over[worst], tables[worst].kind.pool

    def shapes(self, team: tuple[str, ...], micro_batch_size: int, sequences: int) -> list[Shape]:
        """Every shape of a team."""
        return list(self._shapes(team, micro_batch_size, sequences))

    def _shapes(
        self, team: tuple[str, ...], micro_batch_size: int, sequences: int
    ) -> Iterator[Shape]:
        pools = [self.setting.pool(address) for address in team]
        modes = {"auto": ("none", "full")}.get(self.setting.job.plan.recompute)
        for degrees in itertools.product(*map(self.tensor_parallel_degrees, pools)):
            groups = [p.num_chips // tp for p, tp in zip(pools, degrees, strict=True)]
            most = min(*groups, sequences // micro_batch_size)
            for pipelines in range(1, most + 1):
                stages = tuple(g // pipelines for g in groups)
                # More pipelines of the same depth use more chips: only the largest
                # count of each depth can be best.
                later = tuple(g // (pipelines + 1) for g in groups)
                if stages == later and pipelines < most:
                    continue
                for order in itertools.permutations(range(len(pools))):
                    for recompute in modes or (self.setting.job.plan.recompute,):
                        yield Shape(
                            pools=tuple(team[i] for i in order),
                            stages=tuple(stages[i] for i in order),
                            tensor_parallel=tuple(degrees[i] for i in order),
                            pipelines=pipelines,
                            micro_batch_size=micro_batch_size,
                            recompute=recompute,
                        )

    def _stage_tables(self, shape: Shape) -> list[StageTable]:
        tables = []
        for pool, count, tp in zip(shape.pools, shape.stages, shape.tensor_parallel, strict=True):
            kind = StageKind(pool, tp, shape.micro_batch_size, shape.recompute)
            tables += [self.table(kind)] * count
        return tables

    def _bound(self, shape: Shape, sequences: int) -> float:
        """No cut is faster: were layers divisible, every stage would take the same time τ with
        Σ stages · τ ÷ (seconds of the whole model) = 1, once per micro-batch."""
        rate = 0.0
        for pool, count, tp in zip(shape.pools, shape.stages, shape.tensor_parallel, strict=True):
            kind = StageKind(pool, tp, shape.micro_batch_size, shape.recompute)
            rate += count / self.table(kind).model_seconds
        return _micro_batches(shape, sequences) / rate

    def _messages(self, shape: Shape) -> float:
        """Seconds of one micro-batch's messages from the first stage to the last."""
        num_bytes = boundary_bytes(self.setting, shape.micro_batch_size)
        chips = []
        for address, count, tp in zip(
            shape.pools, shape.stages, shape.tensor_parallel, strict=True
        ):
            chips += [self.setting.pool(address).chip_addresses()[i * tp] for i in range(count)]
        return sum(
            message_seconds(num_bytes, a, b, self.setting.cluster, self.setting.profile)
            for a, b in itertools.pairwise(chips)
        )

    def pipelines(self, candidate: Candidate, counts: tuple[int, ...]) -> tuple[Pipeline, ...]:
        """The candidate's pipelines on real chips; ``counts`` are their micro-batches."""
        shape = candidate.shape
        result = []
        for p, micro_batches in enumerate(counts):
            stages = []
            for address, count, tp in zip(
                shape.pools, shape.stages, shape.tensor_parallel, strict=True
            ):
                chips = self.setting.pool(address).chip_addresses()
                for s in range(count):
                    start = (p * count + s) * tp
                    stages.append(
                        Stage(
                            chips=chips[start : start + tp],
                            layers=candidate.layers[len(stages)],
                            tensor_parallel=tp,
                            recompute=shape.recompute,
                        )
                    )
            result.append(
                Pipeline(
                    stages=tuple(stages),
                    micro_batch_size=shape.micro_batch_size,
                    micro_batches=micro_batches,
                )
            )
        return tuple(result)


def _micro_batches(shape: Shape, sequences: int) -> int:
    """Micro-batches of the busiest pipeline."""
    return max(1, math.ceil(sequences / (shape.pipelines * shape.micro_batch_size)))


def _in_flight(shape: Shape, sequences: int) -> list[int]:
    """Micro-batches held at each stage under 1F1B."""
    micro_batches = _micro_batches(shape, sequences)
    return [min(shape.depth - s, micro_batches) for s in range(shape.depth)]
