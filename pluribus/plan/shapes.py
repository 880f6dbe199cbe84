"""The best pipelines a team of pools can form together.

A team is an ordered choice of pools whose chips share pipelines. Its shape says how many like
pipelines there are, and per pool how many stages of how many tensor-parallel chips each has.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pluribus.hardware.cluster import Pool
from pluribus.plan.split import even_split, min_max_split
from pluribus.plan.table import StageKind, StageTable
from pluribus.predict.collectives import group_all_reduce_seconds, message_seconds
from pluribus.predict.curves import node_of
from pluribus.predict.setting import Setting, boundary_bytes
from pluribus.spec.plan import Pipeline, Stage

_QUICK, _SHARP, _EXACT = range(3)  # how exact a shape's place in the queue is
_EVERY_ORDER = 4  # pools up to which every order along a pipeline is tried
LEFT_OVER = 16  # groups of chips of a team up to which some may be left over
_CUTS = 24  # shapes of more pools than these whose layers are cut


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


@dataclass(frozen=True)
class Candidate:
    """A shape with its layers cut.

    Attributes:
        first: seconds of one micro-batch through the pipeline and back.
        each: seconds every further micro-batch adds: the slowest stage.
        tail: seconds of the gradient sums among the shape's own pipelines, and of the update.
    """

    shape: Shape
    layers: tuple[tuple[int, int], ...]
    first: float
    each: float
    tail: float

    def seconds(self, micro_batches: int) -> float:
        """Seconds of the pipeline's step without gradient sums with other shapes."""
        return self.first + (micro_batches - 1) * self.each + self.tail


@dataclass(frozen=True)
class ShapeFinder:
    """Finds shapes in one setting; keeps the price tables it has made."""

    setting: Setting
    _tables: dict[StageKind, StageTable] = field(default_factory=dict, compare=False, repr=False)
    _addresses: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)

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

        Best first: each shape waits in a queue at a bound no cut of it can beat, which is
        sharpened and then replaced by its exact time when its turn comes. What leaves the queue
        exact is therefore the best of all shapes; of many pools, of the most promising ones.
        """
        queue: list[tuple[float, int, int, Shape, Candidate | None]] = [
            (self._quick_bound(shape, sequences), _QUICK, i, shape, None)
            for i, shape in enumerate(self.shapes(team, micro_batch_size, sequences))
        ]
        heapq.heapify(queue)
        found: list[Candidate] = []
        cuts = _CUTS if len(team) > _EVERY_ORDER else len(queue)
        while queue and len(found) < keep:
            _, level, i, shape, candidate = heapq.heappop(queue)
            if candidate is not None:
                found.append(candidate)
            elif not cuts:
                continue
            elif level == _QUICK:
                bound = self._sharp_bound(shape, sequences)
                if math.isfinite(bound):
                    heapq.heappush(queue, (bound, _SHARP, i, shape, None))
            else:
                cuts -= 1
                candidate = self._best_order(shape, sequences)
                if candidate is not None:
                    seconds = candidate.seconds(_micro_batches(shape, sequences))
                    heapq.heappush(queue, (seconds, _EXACT, i, shape, candidate))
        return found

    def _best_order(self, shape: Shape, sequences: int) -> Candidate | None:
        """The fastest cut over the orders of the pools along the pipeline: over all of a few
        pools; of more, from a good one on, as long as moving one pool helps."""
        micro_batches = _micro_batches(shape, sequences)
        tried: dict[tuple[int, ...], Candidate | None] = {}

        def seconds(order: tuple[int, ...]) -> float:
            if order not in tried:
                tried[order] = self.cut(shape.reordered(order), sequences)
            candidate = tried[order]
            return math.inf if candidate is None else candidate.seconds(micro_batches)

        given = tuple(range(len(shape.pools)))
        if len(given) <= _EVERY_ORDER:
            return tried[min(itertools.permutations(given), key=seconds)]
        # What comes first holds most micro-batches.
        memory = [self.setting.pool(pool).chip.memory_bytes * tp for pool, tp in
                  zip(shape.pools, shape.tensor_parallel, strict=True)]  # fmt: skip
        roomy = tuple(sorted(given, key=lambda i: -memory[i]))
        best = min(given, roomy, key=seconds)
        if math.isinf(seconds(best)):
            return None
        while (better := min(_moved(best), key=seconds)) and seconds(better) < seconds(best):
            best = better
        return tried[best]

    def cut(self, shape: Shape, sequences: int, *, even: bool = False) -> Candidate | None:
        """Cuts the layers over a shape's stages; None when they do not fit."""
        num_layers = len(self.setting.model.layers)
        if shape.depth > num_layers:
            return None
        tables = self._stage_tables(shape)
        in_flight = _in_flight(shape, sequences)
        costs = [table.feasible(n) for table, n in zip(tables, in_flight, strict=True)]
        if even:
            layers = even_split(num_layers, shape.depth)
            if any(math.isinf(c[r]) for c, r in zip(costs, layers, strict=True)):
                return None
        else:
            cut = min_max_split(costs)
            if cut is None:
                return None
            layers = cut
        seconds = [float(t.seconds[r]) for t, r in zip(tables, layers, strict=True)]
        first = sum(seconds) + 2 * self._messages(shape)
        return Candidate(shape, layers, first, max(seconds), self._tail(shape, layers))

    def _tail(self, shape: Shape, layers: Sequence[tuple[int, int]]) -> float:
        """Seconds of the longest gradient sum and update of a stage over like pipelines."""
        setting, longest, index = self.setting, 0.0, 0
        for address, count, tp in zip(
            shape.pools, shape.stages, shape.tensor_parallel, strict=True
        ):
            chips = self._chips(address)
            table = self.table(StageKind(address, tp, shape.micro_batch_size, shape.recompute))
            per_node, known = setting.pool(address).chips_per_node, dict[tuple, float]()
            for s in range(count):
                parameters = float(table.parameters[layers[index]])
                # Members a whole number of nodes further on are as far from each other.
                alike = parameters, s * tp % per_node
                if alike not in known:
                    members = chips[s * tp : shape.pipelines * count * tp : count * tp]
                    gradients = parameters * setting.software.gradient_sync_bytes
                    known[alike] = group_all_reduce_seconds(
                        gradients, members, setting.cluster, setting.profile,
                        flows=self._rings(address, members),
                    )  # fmt: skip
                update = setting.update_seconds(address, range(*layers[index]), tp, parameters)
                longest = max(longest, known[alike] + update)
                index += 1
        return longest

    def _rings(self, pool: str, members: Sequence[str]) -> dict[str, float]:
        """Rings that leave each node of a pool at once, as each chip of it is in one."""
        here = Counter(map(node_of, members))
        per_node = self.setting.pool(pool).chips_per_node
        return {node: per_node / count for node, count in here.items()}

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

    def shapes(
        self, team: tuple[str, ...], micro_batch_size: int, sequences: int
    ) -> Iterator[Shape]:
        """Every shape of a team, the pools in the team's order."""
        pools = [self.setting.pool(address) for address in team]
        num_layers = len(self.setting.model.layers)
        asked = self.setting.job.plan.recompute
        modes = {"auto": ("none", "full")}.get(asked)
        for degrees in itertools.product(*map(self.tensor_parallel_degrees, pools)):
            groups = [p.num_chips // tp for p, tp in zip(pools, degrees, strict=True)]
            most = min(*groups, sequences // micro_batch_size)
            # More pipelines of the same depth use more chips at the same speed each: only the
            # largest count of each depth is weighed, which is where some pool's depth changes.
            counts = {g // depth for g in groups for depth in range(1, num_layers + 1)}
            for pipelines in sorted({min(count, most) for count in counts} - {0}):
                deepest = [min(g // pipelines, num_layers) for g in groups]
                # Few chips may do better without some of them: every further stage is a message.
                least = [1] * len(deepest) if sum(groups) <= LEFT_OVER else deepest
                each = (range(a, b + 1) for a, b in zip(least, deepest, strict=True))
                ways = itertools.product(*each)
                for stages, recompute in itertools.product(ways, modes or (asked,)):
                    yield Shape(team, stages, degrees, pipelines, micro_batch_size, recompute)

    def num_shapes(self, team: tuple[str, ...]) -> int:
        """At most how many shapes a team has."""
        pools = [self.setting.pool(address) for address in team]
        total, num_layers = 0, len(self.setting.model.layers)
        for degrees in itertools.product(*map(self.tensor_parallel_degrees, pools)):
            groups = [p.num_chips // tp for p, tp in zip(pools, degrees, strict=True)]
            total += 2 * min(*groups, sum(min(g, num_layers) for g in groups))
        return total

    def _kinds(self, shape: Shape) -> list[StageKind]:
        return [
            StageKind(pool, tp, shape.micro_batch_size, shape.recompute)
            for pool, tp in zip(shape.pools, shape.tensor_parallel, strict=True)
        ]

    def _stage_tables(self, shape: Shape) -> list[StageTable]:
        return [
            table
            for kind, count in zip(self._kinds(shape), shape.stages, strict=True)
            for table in [self.table(kind)] * count
        ]

    def _quick_bound(self, shape: Shape, sequences: int) -> float:
        """Were blocks divisible, every stage would take the same time τ, once per micro-batch.

        A kind needs at least r times the first kind's seconds for any block, so stages of it do
        at most τ ÷ r of the first kind's work: Σ stages · τ ÷ r ≥ seconds of all blocks on the
        first kind.
        """
        kinds = self._kinds(shape)
        first = self.table(kinds[0]).block_seconds
        rate = sum(
            count / float((self.table(kind).block_seconds / first).min())
            for kind, count in zip(kinds, shape.stages, strict=True)
        )
        return _micro_batches(shape, sequences) * float(first.sum()) / rate

    def _sharp_bound(self, shape: Shape, sequences: int) -> float:
        """Blocks are whole, and a stage holds no more than its memory: the least τ at which the
        stages together take all blocks, then as many times as there are micro-batches."""
        micro_batches = _micro_batches(shape, sequences)
        each, most = [], []
        quickest = np.inf
        for kind, count in zip(self._kinds(shape), shape.stages, strict=True):
            table = self.table(kind)
            quickest = np.minimum(quickest, table.layer_seconds)
            each += [table.least_block_seconds] * count
            # Whatever the order, the j-th of these stages from the end holds at least j.
            most += [table.most_layers(min(j, micro_batches)) for j in range(1, count + 1)]
        if min(most) == 0:
            return math.inf
        num_blocks = self.setting.model.num_blocks
        times = np.unique(each)[:, None] * np.arange(1, num_blocks + 1)
        times = np.sort(times.ravel())
        # A hair more, so that n · t ÷ t counts as n whatever the rounding.
        held = np.minimum(times[:, None] * (1 + 1e-9) // each, most).sum(axis=1)
        enough = np.nonzero(held >= num_blocks)[0]
        if not len(enough):
            return math.inf
        return (micro_batches - 1) * float(times[enough[0]]) + float(np.sum(quickest))

    def _messages(self, shape: Shape) -> float:
        """Seconds of one micro-batch's messages from the first stage to the last."""
        num_bytes = boundary_bytes(self.setting, shape.micro_batch_size)
        chips = [
            self._chips(pool)[i * tp]
            for pool, count, tp in zip(
                shape.pools, shape.stages, shape.tensor_parallel, strict=True
            )
            for i in range(count)
        ]
        return sum(
            message_seconds(num_bytes, a, b, self.setting.cluster, self.setting.profile)
            for a, b in itertools.pairwise(chips)
        )

    def _chips(self, pool: str) -> tuple[str, ...]:
        if pool not in self._addresses:
            self._addresses[pool] = self.setting.pool(pool).chip_addresses()
        return self._addresses[pool]

    def pipelines(self, candidate: Candidate, counts: tuple[int, ...]) -> tuple[Pipeline, ...]:
        """The candidate's pipelines on real chips; ``counts`` are their micro-batches."""
        shape = candidate.shape
        result = []
        for p, micro_batches in enumerate(counts):
            stages = []
            for address, count, tp in zip(
                shape.pools, shape.stages, shape.tensor_parallel, strict=True
            ):
                chips = self._chips(address)
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


def _moved(order: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every order with one item moved to another place."""
    moved = []
    for i, item in enumerate(order):
        rest = order[:i] + order[i + 1 :]
        moved += [(*rest[:j], item, *rest[j:]) for j in range(len(order)) if j != i]
    return moved


def _micro_batches(shape: Shape, sequences: int) -> int:
    """Micro-batches of the busiest pipeline."""
    return max(1, math.ceil(sequences / (shape.pipelines * shape.micro_batch_size)))


def _in_flight(shape: Shape, sequences: int) -> list[int]:
    """Micro-batches held at each stage under 1F1B."""
    micro_batches = _micro_batches(shape, sequences)
    return [min(shape.depth - s, micro_batches) for s in range(shape.depth)]
