"""Puts the stages of a plan on chips: which node, which chip, which rank.

Tensor-parallel chips share a node. Within a pool the peers of a gradient sum and the neighbours
of a pipeline compete for the links inside the nodes: gradients are usually the larger part, so
peers sit side by side and pipelines cross the network, but which is better depends on bytes and
bandwidths, so every regular layout is weighed. Between pools and sites only pipelines and the
outer level of gradient sums cross; which pools share a pipeline is the search's choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from pluribus.core.errors import PlanError
from pluribus.plan.layout import Fragments, Layout, fragments_of, layouts, on_nodes
from pluribus.plan.placement_cost import Traffic, neighbours
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline

Cost = tuple[float, float]  # seconds, bytes that leave their rail

_ROUNDS = 2  # over the pools: the choice in one can shift the bottleneck to another
POLISHED = 64  # fragments of a pool up to which regular layouts are polished
_MOST_TRIES = 500  # about 0.2 s


def unplaced(pool: str, count: int) -> tuple[str, ...]:
    """The chips of a stage that `place` has yet to choose: only their number and pool count."""
    return (f"{pool}/0/0",) * count


def place(
    pipelines: Sequence[Pipeline],
    setting: Setting,
    *,
    without: Collection[str] = (),
    polish: bool = True,
) -> tuple[Pipeline, ...]:
    """The pipelines with a chip for every rank.

    Args:
        pipelines: where their stages' chips are now does not matter; the pool of a stage and the
            number of its chips do (see `unplaced`).
        without: addresses of chips that are not to be used, such as lost ones.
        polish: whether moves and swaps improve the best regular layout of small pools.

    Returns:
        The same pipelines. A stage's chips are listed replica by replica, the tensor-parallel
        chips of each next to each other in one node. Equal input gives equal output.

    Raises:
        PlanError: some tensor-parallel group finds no node with enough chips; says which.

    Notes:
        Per pool the layouts of `layout.layouts` are weighed by `Traffic`: the slowest pipeline
        plus the longest gradient sums, then what leaves its rail. Pools are gone through in
        turn, twice.
    """
    used = {stage.pool for pipeline in pipelines for stage in pipeline.stages}
    pools = [setting.pool(address) for address in sorted(used)]
    traffic = Traffic(setting, pipelines)
    try:
        whole = [fragments_of(pipelines, pool, without) for pool in pools]
        return _placed(traffic, whole, polish)
    except PlanError:
        apart = [fragments_of(pipelines, pool, without, whole_sequences=False) for pool in pools]
        return _placed(traffic, apart, polish)


def _placed(traffic: Traffic, work: Sequence[Fragments], polish: bool) -> tuple[Pipeline, ...]:
    return _with_chips(traffic.pipelines, work, _choose(traffic, work, polish))


def _choose(traffic: Traffic, work: Sequence[Fragments], polish: bool) -> list[Layout]:
    """A layout per pool."""
    options = [list(layouts(fragments)) for fragments in work]
    weigher = _Weigher(traffic, tuple(work), [mine[0] for mine in options])
    # What one pool gains by short sums shows only where the others have short sums too.
    starts = [
        [min(mine, key=partial(measure, i)) for i, mine in enumerate(options)]
        for measure in (weigher.gradient_seconds, weigher.pipeline_seconds)
    ]
    ends = []
    for start in starts:
        weigher.chosen = start
        for _ in range(_ROUNDS if len(work) > 1 else 1):
            for i, mine in enumerate(options):
                weigher.chosen[i] = min(mine, key=partial(weigher.cost, i))
        ends.append((weigher.cost(0, start[0]), start))
    weigher.chosen = min(ends, key=lambda end: end[0])[1]
    for i, fragments in enumerate(work):
        if polish and 1 < len(fragments.size) <= POLISHED:
            weigher.chosen[i] = _polished(weigher, i)
    return weigher.chosen


@dataclass(eq=False)
class _Weigher:
    """What a layout of one pool costs beside the chosen ones of the others."""

    traffic: Traffic
    work: tuple[Fragments, ...]
    chosen: list[Layout]
    _alone: dict[int, tuple[Layout, float, float]] = field(default_factory=dict)
    _apart: dict[bytes, float] = field(default_factory=dict)
    _hops: dict[int, tuple[Layout, np.ndarray]] = field(default_factory=dict)

    def cost(self, i: int, layout: Layout) -> Cost:
        """Seconds, and bytes that leave their rail, with this layout of pool ``i``."""
        others = [(j, other) for j, other in enumerate(self.chosen) if j != i]
        gradient = max(self.gradient_seconds(*each) for each in [(i, layout), *others])
        return self.pipeline_seconds(i, layout) + gradient, self._in_pool(i, layout)[1]

    def gradient_seconds(self, i: int, layout: Layout) -> float:
        """Of the longest sums inside pool ``i``."""
        return self._in_pool(i, layout)[0]

    def pipeline_seconds(self, i: int, layout: Layout) -> float:
        """Of the slowest pipeline without its sums."""
        near = self._near(i, layout)
        mark = near.tobytes()
        if mark not in self._apart:
            self._apart[mark] = max(
                self.traffic.pipeline_seconds(pipeline, rows, near)
                for pipeline, rows in self.traffic.columns
            )
        return self._apart[mark]

    def _in_pool(self, i: int, layout: Layout) -> tuple[float, float]:
        known = self._alone.get(id(layout))
        if known is None:
            fragments = self.work[i]
            known = (
                layout,  # kept, so that its id stays its own
                self.traffic.gradient_seconds(fragments, layout),
                self.traffic.off_rail_bytes(fragments, layout),
            )
            self._alone[id(layout)] = known
        return known[1:]

    def _near(self, i: int, layout: Layout) -> np.ndarray:
        near = [self._own(j, layout if j == i else other) for j, other in enumerate(self.chosen)]
        return np.logical_or.reduce(near)

    def _own(self, i: int, layout: Layout) -> np.ndarray:
        """[pipeline, stage] of the hops inside pool ``i``, whether they stay in a node."""
        known = self._hops.get(id(layout))
        if known is None:
            pipelines = self.traffic.pipelines
            none = np.zeros((len(pipelines), max(len(p.stages) for p in pipelines)), dtype=bool)
            known = self._hops[id(layout)] = layout, neighbours(self.work[i], layout, none)
        return known[1]


def _polished(weigher: _Weigher, i: int) -> Layout:
    """Local search from the best regular layout: a fragment to another node, or two swapped.

    The first change that helps is taken; ends when none does, or after `_MOST_TRIES`.
    """
    fragments = weigher.work[i]
    best = weigher.chosen[i]
    least = weigher.cost(i, best)
    size, tries = fragments.size, 0
    improved = True
    while improved:
        improved = False
        for node in _moves(fragments, best.node):
            tries += 1
            if tries > _MOST_TRIES:
                return best
            layout = on_nodes(fragments, node)
            cost = weigher.cost(i, layout)
            if cost[0] < least[0] * (1 - 1e-9):
                best, least, improved = layout, cost, True
                break
    assert (np.bincount(best.node, size, len(fragments.nodes)) <= fragments.capacities).all()
    return best


def _moves(fragments: Fragments, node: np.ndarray) -> Iterator[np.ndarray]:
    """The nodes of every arrangement one move away."""
    size = fragments.size
    free = fragments.capacities - np.bincount(node, size, len(fragments.nodes)).astype(np.int64)
    for a in range(len(node)):
        for n in np.nonzero(free >= size[a])[0].tolist():
            if n != node[a]:
                moved = node.copy()
                moved[a] = n
                yield moved
        for b in range(a + 1, len(node)):
            room = free[node[a]] + size[a] >= size[b] and free[node[b]] + size[b] >= size[a]
            if node[a] != node[b] and room:
                swapped = node.copy()
                swapped[[a, b]] = node[[b, a]]
                yield swapped


def _with_chips(
    pipelines: Sequence[Pipeline], work: Sequence[Fragments], chosen: Sequence[Layout]
) -> tuple[Pipeline, ...]:
    chips: dict[tuple[int, int], tuple[str, ...]] = {}
    for fragments, layout in zip(work, chosen, strict=True):
        for index, (p, s) in enumerate(
            zip(fragments.pipeline.tolist(), fragments.stage.tolist(), strict=True)
        ):
            chips[p, s] = chips.get((p, s), ()) + fragments.chips(layout, index)
    return tuple(
        replace(
            pipeline,
            stages=tuple(
                replace(stage, chips=chips[p, s]) for s, stage in enumerate(pipeline.stages)
            ),
        )
        for p, pipeline in enumerate(pipelines)
    )
