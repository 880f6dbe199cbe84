"""What gradient sums will take, before it is known which chip is whose.

An estimate from how many pipelines of a mix hold a layer in each pool, which ranks columns; what
they take at least is in `least_sums`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pluribus.plan.columns import Column, StageKind, Team
from pluribus.plan.pace import Pace
from pluribus.plan.prices import Array, Prices
from pluribus.predict.algorithms import ALL_REDUCE, GroupShape
from pluribus.predict.collectives import collective_seconds, group_all_reduce_seconds
from pluribus.predict.crossing import crossing
from pluribus.predict.link_classes import links_of
from pluribus.predict.schedule import in_turn
from pluribus.predict.setting import Setting


@dataclass(frozen=True)
class Members:
    """Of the layers a pool holds, how many stages of each pool hold them too.

    Attributes:
        counts: per pool, its partners, itself included: {pool: {pool: stages}}.
        crossing: sums that cross between pools at the same time.
    """

    counts: Mapping[str, Mapping[str, float]]
    crossing: int = 1

    @classmethod
    def of_mix(cls, columns: Sequence[Column], uses: Array, num_layers: int) -> Members:
        pools = sorted({pool for column in columns for pool in column.chips})
        held = {pool: np.zeros(num_layers) for pool in pools}
        for column, times in zip(columns, uses, strict=True):
            for stage in column.stages:
                held[stage.kind.pool][slice(*stage.layers)] += times
        counts = {}
        for pool in pools:
            weight = held[pool] / max(held[pool].sum(), 1e-12)
            counts[pool] = {other: float(held[other] @ weight) for other in pools}
        table = np.stack(list(held.values()))
        mixed = (table >= 0.5).sum(axis=0) > 1
        borders = {
            edge
            for column, times in zip(columns, uses, strict=True)
            if times >= 0.5
            for stage in column.stages
            for edge in stage.layers
        }
        edges = sorted(borders | {0, num_layers})
        degree = [
            min(
                stage.kind.tensor_parallel
                for column, times in zip(columns, uses, strict=True)
                if times >= 0.5
                for stage in column.stages
                if stage.layers[0] <= a < stage.layers[1]
            )
            for a in edges[:-1]
            if mixed[a]
        ]
        return cls(counts, max(sum(degree), 1))


def estimated_tails(
    setting: Setting, prices: Prices, members: Members, *, beside: bool = False
) -> Array:
    """[kinds, runs] seconds of a stage's gradient sums and update.

    Args:
        beside: see `layer_sums`.
    """
    result = prices.update.copy()
    for row, kind in enumerate(prices.kinds):
        bytes_ = prices.parameters[row] * setting.software.gradient_sync_bytes
        partners = members.counts.get(kind.pool)
        if not partners:
            continue
        # Linear between a small and a large run: latency and rate.
        ends = float(bytes_.min()), float(bytes_.max())
        held = {pool: [(count, kind.tensor_parallel)] for pool, count in partners.items()}
        times = [_sum_seconds(setting, b, held, members.crossing, beside) for b in ends]
        result[row] += np.interp(bytes_, ends, times)
    return result


def team_seconds(
    setting: Setting, team: Team, paces: Sequence[Pace], *, beside: bool = False
) -> float:
    """Seconds of a team's step, its gradient sums in the order they will run in.

    A sum waits for its last member, and for the sums before it that share one.

    Args:
        paces: of the team's classes.
        beside: see `layer_sums`.
    """
    ready = []
    for item, pace in zip(team, paces, strict=True):
        end = pace.seconds(max(item.micro_batches)) - pace.tail
        ready.append(end - pace.early)
    spans = Spans.of(team)
    taken = spans.seconds(setting, beside)
    end = 0.0
    lanes = [[(c, s) for c, s, _ in held] for held in spans.holders]
    for turn in in_turn(lanes, [b - a for a, b in spans.layers]):
        start = max(float(ready[c][s]) for c, s in lanes[turn])
        for c, s in lanes[turn]:
            ready[c][s] = start + taken[turn]
        end = max(end, start + taken[turn])
    return end


def layer_sums(
    setting: Setting, columns: Sequence[Column], uses: Array, *, beside: bool = False
) -> Array:
    """[L] seconds that each layer's sum takes in a mix.

    Args:
        beside: whether members sit beside each other in their nodes, as many as there is room for,
            or are spread over all nodes; then the neighbours of a pipeline may share nodes.
    """
    used = [(column, times) for column, times in zip(columns, uses, strict=True) if times > 0.01]
    spans = Spans.of_uses([c for c, _ in used], [times for _, times in used])
    each = [
        seconds / (b - a)
        for (a, b), seconds in zip(spans.layers, spans.seconds(setting, beside), strict=True)
    ]
    return np.repeat(each, [b - a for a, b in spans.layers])


@dataclass(frozen=True)
class Spans:
    """The runs of layers between any two borders of a mix, and who holds them.

    Attributes:
        layers: (first, after the last) of each run.
        holders: of each run (column, stage, kind of stage).
        uses: how often each column is used.
    """

    layers: Sequence[tuple[int, int]]
    holders: Sequence[Sequence[tuple[int, int, StageKind]]]
    uses: Sequence[float]

    @classmethod
    def of(cls, team: Team) -> Spans:
        return cls.of_uses([item.column for item in team], [item.count for item in team])

    @classmethod
    def of_uses(cls, columns: Sequence[Column], uses: Sequence[float]) -> Spans:
        edges = sorted({edge for column in columns for s in column.stages for edge in s.layers})
        layers = list(itertools.pairwise(edges))
        firsts = {a: i for i, (a, _) in enumerate(layers)} | {edges[-1]: len(layers)}
        holders: list[list[tuple[int, int, StageKind]]] = [[] for _ in layers]
        for c, column in enumerate(columns):
            for s, stage in enumerate(column.stages):
                a, b = stage.layers
                for i in range(firsts[a], firsts[b]):
                    holders[i].append((c, s, stage.kind))
        # Last layers first, as they are summed.
        return cls(layers[::-1], holders[::-1], uses)

    def seconds(self, setting: Setting, beside: bool) -> list[float]:
        """What the sum of each run takes; see `layer_sums`."""
        layers = setting.model.layers
        rings = sum(
            min(kind.tensor_parallel for _, _, kind in held)
            for held in self.holders
            if len({kind.pool for _, _, kind in held}) > 1
        )
        result = []
        for (a, b), held in zip(self.layers, self.holders, strict=True):
            tp = min(kind.tensor_parallel for _, _, kind in held)
            parameters = sum(layers[i].parameters_per_rank(tp=tp) for i in range(a, b))
            classes: dict[str, list[tuple[float, int]]] = {}
            for c, _, kind in held:
                classes.setdefault(kind.pool, []).append((self.uses[c], kind.tensor_parallel))
            num_bytes = parameters * setting.software.gradient_sync_bytes
            result.append(_sum_seconds(setting, num_bytes, classes, max(rings, 1), beside))
        return result


def _sum_seconds(
    setting: Setting,
    num_bytes: float,
    classes: Mapping[str, Sequence[tuple[float, int]]],
    rings: int,
    beside: bool,
) -> float:
    """Of one sum.

    Nodes that hold equally many members sum in two levels or on all adapters, others over one
    adapter each (`predict.gradients`). Beside each other, as many share each node as there is room
    for the widest of them, and as divide each class of like members; fractions are divisible.

    Args:
        classes: per pool, how many members there are of a kind, and their tensor-parallel degree.
        rings: sums that cross the pools at the same time.
        beside: see `layer_sums`.
    """
    members = {pool: round(sum(n for n, _ in own)) for pool, own in classes.items()}
    members = {pool: count for pool, count in members.items() if count}
    if sum(members.values()) < 2:
        return 0.0
    if not beside or (setting.profile and (setting.profile.curves or setting.profile.links)):
        tp = min(degree for own in classes.values() for _, degree in own)
        chips = _spread(setting, members, tp)
        return group_all_reduce_seconds(num_bytes, chips, setting.cluster, setting.profile, rings)
    inside = 0.0
    for address, count in members.items():
        if count > 1:
            pool, own = setting.pool(address), classes[address]
            room = pool.chips_per_node // max(degree for _, degree in own)
            shapes = [GroupShape(1, count, pool.adapters)]
            for here in range(2, min(room, count) + 1):
                if all(n % here == 0 for n, _ in own if n == int(n)):
                    shapes.append(GroupShape(here, -(-count // here), pool.adapters))
            links = links_of(pool)
            times = [collective_seconds(ALL_REDUCE, num_bytes, s, links).seconds for s in shapes]
            inside = max(inside, float(min(times)))
    if len(members) == 1:
        return inside
    return inside + crossing(num_bytes, members, setting.cluster, rings).seconds


def _spread(setting: Setting, counts: Mapping[str, int], tp: int) -> list[str]:
    """Chips like those of a group's members, given how many there are in each pool."""
    chips = []
    for address, count in counts.items():
        pool = setting.pool(address)
        number = min(round(count), pool.num_chips // tp)
        if number:
            stride = pool.num_chips // number
            stride = max(stride - stride % tp, tp)
            places = range(0, min(number * stride, pool.num_chips), stride)
            per_node = pool.chips_per_node
            chips += [f"{address}/{i // per_node}/{i % per_node}" for i in places]
    return chips
