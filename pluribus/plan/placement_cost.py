"""What a layout costs: seconds of messages and gradient sums, then bytes that leave their rail.

Cheap enough to weigh dozens of layouts of thousands of chips; the predictor has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluribus.hardware.pool import Pool
from pluribus.plan.layout import Fragments, Layout, PeerKey, peer_key
from pluribus.predict.algorithms import ALL_REDUCE, GroupShape
from pluribus.predict.collectives import collective_seconds, message_seconds
from pluribus.predict.compute import StageTime
from pluribus.predict.link_classes import links_of
from pluribus.predict.memory import GRADIENT_BYTES
from pluribus.predict.schedule import max_in_flight
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Stage

_Peers = tuple[str, PeerKey]  # a class of peers: its pool and what they hold


@dataclass(frozen=True, eq=False)
class Traffic:
    """What the stages of a plan tell each other.

    Attributes:
        pipelines: the plan's; which chips their stages hold does not matter here.
    """

    setting: Setting
    pipelines: Sequence[Pipeline]

    @cached_property
    def columns(self) -> tuple[tuple[Pipeline, np.ndarray], ...]:
        """Pipelines that differ only in their chips: one of them, and the indices of all."""
        rows: dict[tuple, list[int]] = {}
        for p, pipeline in enumerate(self.pipelines):
            stages = tuple(_use(stage) for stage in pipeline.stages)
            counts = pipeline.micro_batch_size, pipeline.micro_batches, pipeline.schedule
            rows.setdefault((stages, counts), []).append(p)
        return tuple((self.pipelines[rows_[0]], np.array(rows_)) for rows_ in rows.values())

    @cached_property
    def _sums(self) -> dict[_Peers, tuple[tuple[frozenset, float], ...]]:
        """Of each class of peers its gradient groups: the classes that hold the same layers, and
        the bytes that each member sums."""
        layers = self.setting.model.layers
        holders: dict[int, set[_Peers]] = {}
        for pipeline, _ in self.columns:
            for stage in pipeline.stages:
                for layer in stage.layer_indices:
                    holders.setdefault(layer, set()).add(_peers(stage))
        tied = self.setting.tied_layers
        if tied is not None:
            holders[tied[0]] |= holders[tied[1]]
        groups: dict[frozenset, float] = {}
        for layer, classes in holders.items():
            tp = min(key[1] for _, key in classes)
            num_bytes = layers[layer].parameters_per_rank(tp=tp) * GRADIENT_BYTES
            members = frozenset(classes)
            groups[members] = groups.get(members, 0.0) + num_bytes
        result: dict[_Peers, list[tuple[frozenset, float]]] = {}
        for members, num_bytes in groups.items():
            for member in members:
                result.setdefault(member, []).append((members, num_bytes))
        return {member: tuple(sums) for member, sums in result.items()}

    @cached_property
    def _head_start(self) -> dict[_Peers, float]:
        """Of each class of peers, by how many seconds its last member is done before the first
        stage is: the backward of every stage before it."""
        result: dict[_Peers, float] = {}
        for pipeline, _ in self.columns:
            before = 0.0
            for stage in pipeline.stages:
                peers = _peers(stage)
                result[peers] = min(result.get(peers, before), before)
                before += sum(time.backward for time in self._chunks(pipeline, stage))
        return result

    def _chunks(self, pipeline: Pipeline, stage: Stage) -> list[StageTime]:
        size = pipeline.micro_batch_size
        return [self.setting.stage_time(chunk, size) for chunk in stage.by_chunk]

    def gradient_seconds(self, fragments: Fragments, layout: Layout) -> float:
        """Seconds by which the gradient sums inside the pool outlast the backward passes.

        As in `predict.collectives`: two levels where each node holds as many members, one flat
        group otherwise.
        """
        links, pool = links_of(fragments.pool), fragments.pool.address
        index = {key: i for i, key in enumerate(fragments.keys)}
        size = len(fragments.keys)
        places = np.bincount(layout.node * size + fragments.peers)
        places = np.pad(places, (0, -len(places) % size)).reshape(-1, size)  # [node, key]
        node_counts: dict[frozenset, tuple[int, ...]] = {}
        longest = 0.0
        for key in fragments.keys:
            seconds = -self._head_start[pool, key]
            for members, num_bytes in self._sums[pool, key]:
                if members not in node_counts:
                    here = [index[k] for address, k in members if address == pool]
                    counts = places[:, here].sum(axis=1)
                    node_counts[members] = tuple(counts[counts > 0].tolist())
                counts = node_counts[members]
                group = GroupShape(counts[0], len(counts))
                if min(counts) < max(counts):
                    group = GroupShape(1, sum(counts))
                seconds += float(collective_seconds(ALL_REDUCE, num_bytes, group, links).seconds)
            longest = max(longest, seconds)
        return longest

    def off_rail_bytes(self, fragments: Fragments, layout: Layout) -> float:
        """Gradient bytes of members that sit on another rail than most of their peers."""
        if fragments.pool.rails is None:
            return 0.0
        pool, rails = fragments.pool, fragments.pool.rails
        first = np.array(
            [
                fragments.nodes[n][c]
                for n, c in zip(layout.node.tolist(), layout.first.tolist(), strict=True)
            ]
        )
        # Side by side in a node, peers take a rail each; the other nodes should take the same.
        rail = (first * rails // pool.chips_per_node).astype(np.int64)
        total = 0.0
        for index, key in enumerate(fragments.keys):
            mine = fragments.peers == index
            nodes = len(np.unique(layout.node[mine]))
            if nodes < 2:
                continue
            spare = np.bincount(rail[mine]) % nodes
            off = np.minimum(spare, nodes - spare).sum() / 2
            total += float(off) * sum(num_bytes for _, num_bytes in self._sums[pool.address, key])
        return total

    def pipeline_seconds(self, pipeline: Pipeline, rows: np.ndarray, near: np.ndarray) -> float:
        """Seconds of the slowest of like pipelines without gradient sums and update.

        A micro-batch's way from a stage to the last and back takes the stages' times and two
        messages per hop; a stage has only so many micro-batches on that way at once, so one
        leaves it every (way ÷ micro-batches in flight), or as often as the slowest stage is done.

        Args:
            rows: indices of the like pipelines.
            near: [pipeline, stage] whether a stage and the next share a node.
        """
        depth = len(pipeline.stages)
        hops = near[rows, : depth - 1].tobytes()
        each = {hops[i : i + depth - 1] for i in range(0, len(hops), depth - 1)} if hops else {b""}
        key = id(pipeline), b"".join(sorted(each))
        if key not in self._slowest:
            patterns = np.zeros((1, 0), dtype=bool)
            if depth > 1:
                patterns = np.frombuffer(key[1], dtype=bool).reshape(-1, depth - 1)
            self._slowest[key] = self._seconds_of(pipeline, patterns)
        return self._slowest[key]

    @cached_property
    def _slowest(self) -> dict[tuple[int, bytes], float]:
        return {}  # pipelines live as long as `columns` does

    def _seconds_of(self, pipeline: Pipeline, patterns: np.ndarray) -> float:
        """Of the slowest of like pipelines, given where their hops stay inside a node."""
        times, close, far = self._times(pipeline)
        depth = len(times)
        messages = np.where(patterns, close, far)  # [pattern, hop]
        hops = np.concatenate([messages, np.zeros((len(patterns), 1))], axis=1)
        way = np.cumsum((times + 2 * hops)[:, ::-1], axis=1)[:, ::-1]  # from each stage on
        flight = np.array([max_in_flight(pipeline, s) for s in range(depth)])
        each = np.maximum(times.max(), (way / flight).max(axis=1))
        return float((way[:, 0] + (pipeline.micro_batches - 1) * each).max())

    def _times(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[stage] seconds of a micro-batch, [hop] of a message inside a node and to another."""
        if id(pipeline) not in self._timed:
            self._timed[id(pipeline)] = pipeline, self._time(pipeline)
        return self._timed[id(pipeline)][1]

    @cached_property
    def _timed(self) -> dict[int, tuple[Pipeline, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        return {}  # hashing a pipeline takes long; kept, so that its id stays its own

    def _time(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        times = np.array(
            [sum(time.total for time in self._chunks(pipeline, s)) for s in pipeline.stages]
        )
        num_bytes = self.setting.boundary_bytes(pipeline)
        close, far = [], []
        for a, b in zip(pipeline.stages[:-1], pipeline.stages[1:], strict=True):
            for seconds, node in ((close, 0), (far, 1)):
                seconds.append(self._message(num_bytes, a.pool, b.pool, node))
        return times, np.array(close), np.array(far)

    def _message(self, num_bytes: float, a: str, b: str, node: int) -> float:
        """From a chip of node 0 of one pool to a chip of a node of another or the same."""
        source, target = self.setting.pool(a), self.setting.pool(b)
        if a == b and (source.nodes if node else source.chips_per_node) < 2:
            return 0.0  # no such pair of chips
        other = _address(target, node, 1 - node) if a == b else f"{b}/0/0"
        return message_seconds(
            num_bytes, f"{a}/0/0", other, self.setting.cluster, self.setting.profile
        )


def neighbours(fragments: Fragments, layout: Layout, near: np.ndarray) -> np.ndarray:
    """``near`` [pipeline, stage] with the pool's own hops as a layout makes them."""
    result = near.copy()
    lead = fragments.replica == 0
    nodes = np.full(near.shape, -1)
    nodes[fragments.pipeline[lead], fragments.stage[lead]] = layout.node[lead]
    both = (nodes[:, :-1] >= 0) & (nodes[:, 1:] >= 0)
    result[:, :-1] = np.where(both, nodes[:, :-1] == nodes[:, 1:], near[:, :-1])
    return result


def _address(pool: Pool, node: int, chip: int) -> str:
    return f"{pool.address}/{node}/{chip}"


def _peers(stage: Stage) -> _Peers:
    return stage.pool, peer_key(stage)


def _use(stage: Stage) -> tuple:
    """How a stage uses its chips, whichever they are."""
    return (
        stage.pool, len(stage.chips), stage.chunks or (stage.layers,), stage.tensor_parallel,
        stage.context_parallel, stage.expert_parallel, stage.recompute, stage.zero,
    )  # fmt: skip
