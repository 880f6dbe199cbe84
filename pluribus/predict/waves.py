"""The timeline of one pipeline for many candidate durations at once.

For one order of passes the dependencies are sorted once into waves: passes of which none waits
for another. Then every wave of every candidate is timed by one gather, one addition and one
maximum. `simulate` is the reference; this is the same longest path without its link queue: a
message takes its time, however many share the link. The two agree wherever no link is saturated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pluribus.predict.schedule import Structure, passes
from pluribus.predict.schedules.base import Action, ActionKind, Order, Placement
from pluribus.spec.plan import Pipeline

Array = NDArray[np.float64]

# Passes × candidates timed in one go: two gathered rows of this many numbers stay near the cache.
_BLOCK = 1 << 18

_WHOLE = (ActionKind.FORWARD, ActionKind.BACKWARD)
_SPLIT = (ActionKind.FORWARD, ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT)


@dataclass(frozen=True)
class WaveTimes:
    """Seconds since the pipeline began, each [candidates, stages].

    Attributes:
        begin: when a stage's first pass starts.
        end: when its last pass ends.
        busy: what its passes take.
    """

    begin: Array
    end: Array
    busy: Array

    @property
    def pipeline_end(self) -> Array:
        """When the last stage has ended, [candidates]."""
        return self.end.max(axis=1)

    @property
    def waits(self) -> Array:
        """What each stage waits from its first to its last pass: bubbles and exposed messages."""
        return self.end - self.begin - self.busy

    @property
    def bubble_rate(self) -> Array:
        """Share of the longest stage's time, first pass to last, that the busiest stage's passes
        do not fill, [candidates] (Qi et al. 2023, arXiv 2401.10241 §5.3)."""
        return 1 - self.busy.max(axis=1) / (self.end - self.begin).max(axis=1)


@dataclass(frozen=True, eq=False)
class Waves:
    """The dependencies of one order, by wave. Row 0 is the beginning; row i is pass i.

    Attributes:
        kinds: of the passes, the second axis of `solve`'s compute.
        count: micro-batches.
        bounds: the rows [first, end) of each wave.
        before: of each wave, the row each pass follows on its stage, then the row of the pass
            whose message it needs.
        duration: of each entry of `before`, the index of the pass's own duration.
        message: of each entry of `before`, the index of its message's duration.
        first: each stage's first row.
        last: each stage's last row.
    """

    placement: Placement
    kinds: tuple[ActionKind, ...]
    count: int
    bounds: tuple[tuple[int, int], ...]
    before: tuple[NDArray[np.intp], ...]
    duration: NDArray[np.intp]
    message: NDArray[np.intp]
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    def solve(self, compute: ArrayLike, transfer: ArrayLike = 0.0) -> WaveTimes:
        """Times every candidate.

        Args:
            compute: seconds of a pass, [candidates, kinds, virtual stages].
            transfer: seconds of a message, [candidates, 2, virtual stages − 1]: of activations
                from virtual stage u to u + 1, and of gradients back. Anything that broadcasts
                to it. Between chunks of the same stage nothing is sent, and it is not read.
        """
        compute = np.asarray(compute, dtype=np.float64)
        num_virtual = self.placement.num_virtual
        assert compute.ndim == 3
        assert compute.shape[1:] == (len(self.kinds), num_virtual)
        candidates = len(compute)
        messages = np.zeros((candidates, 2 * (num_virtual - 1) + 1))  # the last one: no message
        messages[:, :-1] = np.broadcast_to(
            np.asarray(transfer, dtype=np.float64), (candidates, 2, num_virtual - 1)
        ).reshape(candidates, -1)
        own = np.ascontiguousarray(compute.reshape(candidates, -1).T)
        wire = np.ascontiguousarray(messages.T)
        step = max(_BLOCK // len(self.duration), 1)
        begins, ends = [], []
        for at in range(0, candidates, step):
            block = slice(at, at + step) if candidates > 1 else 0  # one candidate: plain vectors
            rows = self._rows(own[:, block], wire[:, block])
            ends.append(rows[self.last])
            begins.append(rows[self.first] - own[self._first_durations, block])
        shape = (len(self.first), candidates)
        stages = (
            compute.sum(axis=1)
            .reshape(candidates, num_virtual)[:, self._by_stage]
            .reshape(candidates, self.placement.num_stages, -1)
        )
        return WaveTimes(
            begin=np.concatenate(begins, axis=-1).reshape(shape).T,
            end=np.concatenate(ends, axis=-1).reshape(shape).T,
            busy=self.count * stages.sum(axis=2),
        )

    def _rows(self, own: Array, wire: Array) -> Array:
        """When each pass ends, [1 + passes, candidates of the block]."""
        lag = own[self.duration]
        lag += wire[self.message]
        rows = np.zeros((len(self.duration) // 2 + 1, *own.shape[1:]))
        at = 0
        for (first, end), before in zip(self.bounds, self.before, strict=True):
            width = end - first
            both = rows.take(before, axis=0)
            both += lag[at : at + 2 * width]
            np.maximum(both[:width], both[width:], out=rows[first:end])
            at += 2 * width
        return rows

    @property
    def _first_durations(self) -> NDArray[np.intp]:
        """Index of the duration of each stage's first pass, a forward of its first chunk."""
        stages = range(self.placement.num_stages)
        return np.array([self.placement.virtual(stage, 0) for stage in stages])

    @property
    def _by_stage(self) -> NDArray[np.intp]:
        """The virtual stages, those of one stage beside each other."""
        place = self.placement
        return np.array(
            [place.virtual(s, c) for s in range(place.num_stages) for c in range(place.chunks)]
        )


def waves(pipeline: Pipeline) -> Waves:
    """The waves of a pipeline, made once for each structure."""
    return _waves(Structure.of(pipeline))


@functools.lru_cache(maxsize=64)
def _waves(structure: Structure) -> Waves:
    return make_waves(passes(structure), structure.placement, structure.micro_batches)


def make_waves(order: Order, placement: Placement, micro_batches: int) -> Waves:
    """Sorts an order's passes into waves.

    Args:
        order: [stage] -> its passes.
        placement: of their chunks.
        micro_batches: each passes every chunk once in each direction.
    """
    kinds = _SPLIT if any(a.kind is _SPLIT[1] for a in order[0]) else _WHOLE
    num_virtual = placement.num_virtual
    none = 2 * (num_virtual - 1)
    # Of each pass, by (kind, virtual stage, micro-batch): (wave, position in all).
    depth: dict[tuple[int, int, int], tuple[int, int]] = {}
    entries: list[tuple[int, int, int, int, int]] = []  # wave, on stage, by message, own, wire
    position = [0] * placement.num_stages
    latest = [(-1, 0)] * placement.num_stages  # (wave, row before sorting)
    ready = list(range(placement.num_stages))
    while ready:
        moved = False
        for stage in ready:
            for at in range(position[stage], len(order[stage])):
                action = order[stage][at]
                kind = kinds.index(action.kind)
                virtual = placement.virtual(stage, action.chunk)
                needed, wire = _needed(action, kind, virtual, stage, placement)
                other = latest[stage]
                if needed is not None:
                    if needed not in depth:
                        break
                    other = depth[needed]
                wave = max(latest[stage][0], other[0]) + 1
                entries.append(
                    (wave, latest[stage][1], other[1], kind * num_virtual + virtual,
                     none if needed is None else wire)
                )  # fmt: skip
                latest[stage] = depth[kind, virtual, action.index] = (wave, len(entries))
                position[stage] += 1
                moved = True
        ready = [stage for stage in ready if position[stage] < len(order[stage])]
        assert moved or not ready, f"the order deadlocks at stages {ready}"
    return _sorted(entries, placement, kinds, micro_batches, [row for _, row in latest], none)


def _needed(
    action: Action, kind: int, virtual: int, stage: int, placement: Placement
) -> tuple[tuple[int, int, int] | None, int]:
    """The pass of another stage that a pass waits for, and the index of the message from it."""
    if action.kind is ActionKind.FORWARD:
        other, wire = virtual - 1, virtual - 1
    elif action.kind is ActionKind.BACKWARD_WEIGHT:
        return None, 0
    else:
        other, wire = virtual + 1, placement.num_virtual - 1 + virtual
    if not 0 <= other < placement.num_virtual or placement.home(other)[0] == stage:
        return None, 0
    return (kind, other, action.index), wire


def _sorted(
    entries: list[tuple[int, int, int, int, int]],
    placement: Placement,
    kinds: tuple[ActionKind, ...],
    micro_batches: int,
    last: list[int],
    none: int,
) -> Waves:
    """Numbers the passes by wave, so that each wave is one slice of rows."""
    table = np.array(entries, dtype=np.intp)
    by_wave = np.argsort(table[:, 0], kind="stable")
    row_of = np.zeros(len(table) + 1, dtype=np.intp)
    row_of[by_wave + 1] = np.arange(1, len(table) + 1)
    table = table[by_wave]
    sizes = np.bincount(table[:, 0])
    ends = np.cumsum(sizes)
    on_stage, by_message = row_of[table[:, 1]], row_of[table[:, 2]]
    before, duration, message, bounds = [], [], [], []
    for first, end in zip(ends - sizes, ends, strict=True):
        part = slice(first, end)
        before.append(np.concatenate([on_stage[part], by_message[part]]))
        duration += [table[part, 3]] * 2
        message += [np.full(end - first, none), table[part, 4]]
        bounds.append((int(first) + 1, int(end) + 1))
    starts = np.flatnonzero(on_stage == 0) + 1
    stage_of = [placement.home(int(table[row - 1, 3]) % placement.num_virtual)[0] for row in starts]
    return Waves(
        placement=placement,
        kinds=kinds,
        count=micro_batches,
        bounds=tuple(bounds),
        before=tuple(before),
        duration=np.concatenate(duration),
        message=np.concatenate(message),
        first=starts[np.argsort(stage_of)],
        last=row_of[last],
    )
