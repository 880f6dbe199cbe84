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
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pluribus.hardware.cluster import Pool
from pluribus.plan.shape_space import Shape, ShapeSpace
from pluribus.plan.split import even_split, min_max_split
from pluribus.plan.table import StageKind, StageTable
from pluribus.predict.collectives import group_all_reduce_seconds, message_seconds
from pluribus.predict.curves import node_of
from pluribus.predict.setting import Setting, boundary_bytes
from pluribus.spec.plan import Pipeline, Stage

_BOUND, _EXACT = range(2)  # how exact a shape's place in the queue is
_EVERY_ORDER = 4  # pools up to which every order along a pipeline is tried
_CUTS = 24  # shapes of more pools than these whose layers are cut
_BLOCK = 16, 512  # shapes whose bounds are sharpened together, at first and at most


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
    _known: dict[tuple, float] = field(default_factory=dict, compare=False, repr=False)
    _found: dict[tuple, list[Candidate]] = field(default_factory=dict, compare=False, repr=False)

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

    def bound(self, team: tuple[str, ...], micro_batch_size: int, sequences: int) -> float:
        """Seconds in which no shape of a team works through this many sequences; infinite where
        none holds the model."""
        space = self.space(team, micro_batch_size, sequences)
        order, least, block = np.argsort(space.quick, kind="stable"), math.inf, _BLOCK[0]
        for done in range(0, len(order), block):
            rows = order[done : done + block]
            if space.quick[rows[0]] >= least:
                break
            least = min(least, float(space.sharp(rows).min()))
        return least

    def best(
        self,
        team: tuple[str, ...],
        micro_batch_size: int,
        sequences: int,
        keep: int = 2,
        cuts: int | None = None,
    ) -> list[Candidate]:
        """The fastest ways for a team to work through this many sequences per step.

        Best first: shapes come in order of a bound no cut of them can beat, wait in a queue at a
        sharper one, and then at their exact time. What leaves the queue exact is therefore the
        best of all shapes; of many pools, of the most promising ones.

        Args:
            cuts: shapes whose layers are cut at most.
        """
        asked = team, micro_batch_size, sequences, keep, cuts
        if asked not in self._found:
            self._found[asked] = self._best(*asked)
        return self._found[asked]

    def _best(
        self,
        team: tuple[str, ...],
        micro_batch_size: int,
        sequences: int,
        keep: int,
        cuts: int | None,
    ) -> list[Candidate]:
        space = self.space(team, micro_batch_size, sequences)
        order, done, (block, widest) = np.argsort(space.quick, kind="stable"), 0, _BLOCK
        queue: list[tuple[float, int, int, Candidate | None]] = []
        found: list[Candidate] = []
        if cuts is None:
            cuts = _CUTS if len(team) > _EVERY_ORDER else len(space)
        while len(found) < keep:
            if (
                cuts
                and done < len(order)
                and (not queue or space.quick[order[done]] <= queue[0][0])
            ):
                rows = order[done : done + block]
                done, block = done + len(rows), min(2 * block, widest)
                bounds = np.maximum(space.quick[rows], space.sharp(rows))
                for bound, row in zip(bounds.tolist(), rows.tolist(), strict=True):
                    if math.isfinite(bound):
                        heapq.heappush(queue, (bound, _BOUND, row, None))
                continue
            if not queue:
                break
            _, _, row, candidate = heapq.heappop(queue)
            if candidate is not None:
                found.append(candidate)
            elif cuts:
                cuts -= 1
                candidate = self._best_order(space[row], sequences)
                if candidate is not None:
                    seconds = candidate.seconds(candidate.shape.micro_batches(sequences))
                    heapq.heappush(queue, (seconds, _EXACT, row, candidate))
        return found

    def _best_order(self, shape: Shape, sequences: int) -> Candidate | None:
        """The fastest cut over the orders of the pools along the pipeline: over all of a few
        pools; of more, from a good one on, as long as moving one pool helps."""
        micro_batches = shape.micro_batches(sequences)
        tried: dict[tuple[int, ...], Candidate | None] = {}
        best = math.inf

        def seconds(order: tuple[int, ...]) -> float:
            nonlocal best
            if order not in tried:
                tried[order] = self.cut(shape.reordered(order), sequences, most=best)
            candidate = tried[order]
            taken = math.inf if candidate is None else candidate.seconds(micro_batches)
            best = min(best, taken)
            return taken

        given = tuple(range(len(shape.pools)))
        if len(given) <= _EVERY_ORDER:
            return tried[min(itertools.permutations(given), key=seconds)]
        # What comes first holds most micro-batches.
        memory = [self.setting.pool(pool).chip.memory_bytes * tp for pool, tp in
                  zip(shape.pools, shape.tensor_parallel, strict=True)]  # fmt: skip
        roomy = tuple(sorted(given, key=lambda i: -memory[i]))
        now = min(given, roomy, key=seconds)
        if math.isinf(seconds(now)):
            return None
        while (better := min(_moved(now), key=seconds)) and seconds(better) < seconds(now):
            now = better
        return tried[now]

    def cut(
        self, shape: Shape, sequences: int, *, even: bool = False, most: float = math.inf
    ) -> Candidate | None:
        """Cuts the layers over a shape's stages; None when they do not fit, or when passes alone
        take more seconds than are of interest."""
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
        if sum(seconds) + (shape.micro_batches(sequences) - 1) * max(seconds) > most:
            return None
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
            per_node, known = setting.pool(address).chips_per_node, self._known
            for s in range(count):
                parameters = float(table.parameters[layers[index]])
                # Members a whole number of nodes further on are as far from each other.
                alike = address, tp, count, shape.pipelines, parameters, s * tp % per_node
                if alike not in known:
                    members = chips[s * tp : shape.pipelines * count * tp : count * tp]
                    gradients = parameters * setting.software.gradient_sync_bytes
                    known[alike] = group_all_reduce_seconds(
                        gradients, members, setting.cluster, setting.profile,
                        flows=self._rings(address, members),
                    )  # fmt: skip
                held = address, tp, layers[index]
                if held not in known:
                    known[held] = setting.update_seconds(
                        address, range(*layers[index]), tp, parameters
                    )
                longest = max(longest, known[alike] + known[held])
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
        return iter(self.space(team, micro_batch_size, sequences))

    def space(self, team: tuple[str, ...], micro_batch_size: int, sequences: int) -> ShapeSpace:
        """All of them."""
        degrees = tuple(
            tuple(self.tensor_parallel_degrees(self.setting.pool(address))) for address in team
        )
        return ShapeSpace(self.setting, self.table, team, degrees, micro_batch_size, sequences)

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
        return sum(self._message(num_bytes, a, b) for a, b in itertools.pairwise(chips))

    def _message(self, num_bytes: float, a: str, b: str) -> float:
        if (num_bytes, a, b) not in self._known:
            self._known[num_bytes, a, b] = message_seconds(
                num_bytes, a, b, self.setting.cluster, self.setting.profile
            )
        return self._known[num_bytes, a, b]

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


def _in_flight(shape: Shape, sequences: int) -> list[int]:
    """Micro-batches held at each stage under 1F1B."""
    micro_batches = shape.micro_batches(sequences)
    return [min(shape.depth - s, micro_batches) for s in range(shape.depth)]
