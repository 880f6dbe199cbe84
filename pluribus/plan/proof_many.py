"""What pipelines with more micro-batches than stages leave of a proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.prices import MANY, Array
from pluribus.plan.pricing import Lanes
from pluribus.plan.proof_question import EPS, FINE, NARROW, SINGLE, Question

_PAIRS = 24  # depths and counts left open that labels are tried for


@dataclass(frozen=True)
class _Way:
    """How a proof goes.

    Attributes:
        shares: of what a second is worth at the pace of the slowest stage, each a price of time.
        turning: whether stages before the slowest are passed once, not as often as the others.
        widest: ratio of a cell's values up to which it is tried.
        often: how often stages are passed: 0 stands for twice, 1 for as often as there is time.
    """

    shares: tuple[float, ...]
    turning: bool
    widest: float
    often: tuple[float, ...]


# Those that close most cells on the scaling bench, the best first.
_WAYS = (
    _Way((0.9, 1.4), False, 1.1, (0.0, 1.0)), _Way((0.95,), True, 1.065, (0.0,)),
    _Way((0.75, 1.15), True, 1.03, (0.0,)),
    _Way((0.5, 0.65, 0.9, 1.4, 1.8, 2.5), True, NARROW, (0.0,)),
)  # fmt: skip
# Where one value is left, after labels.
_LAST_WAYS = (_Way(FINE, False, SINGLE, (0.0, 0.5, 1.0)), _Way(FINE, True, SINGLE, (0.5, 1.0)))


def excess_of_many(question: Question, low: Array, cap: Array, counts: Array) -> Array:
    """[cells] what m > S leave open."""
    plain = question.plain(cap, question.size * counts, MANY)
    excess = np.maximum(1 - plain.min(axis=0) / (question.size * counts), EPS)
    open_: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for cell, count in enumerate(counts.astype(int)):
        need = np.maximum(np.floor(plain[:, cell] / question.size) + 1, question.least)
        depth = np.flatnonzero(np.maximum(need, np.arange(2, len(plain) + 2)) <= count) + 1
        m = np.arange(min(need.min(), count + 1), count + 1)
        which, row = np.nonzero((m >= need[depth - 1, None]) & (m > depth[:, None]))
        open_.append((depth[which], m[row].astype(np.int64)))
    for ways in (_WAYS, _LAST_WAYS):
        for way in ways:
            left = [len(m) * (cap[c] <= low[c] * way.widest) for c, (_, m) in enumerate(open_)]
            cells = np.flatnonzero(left)
            if len(cells):
                excess[cells] = _outlast(question, way, low, cap, cells, open_)
        widest = NARROW if ways is _WAYS else SINGLE
        for cell, pairs in enumerate(open_):
            if 0 < len(pairs[0]) <= _PAIRS and cap[cell] <= low[cell] * widest:
                often = ways is _LAST_WAYS
                open_[cell] = _within_of(question, low[cell], cap[cell], *pairs, often=often)
    return np.where([len(m) > 0 for _, m in open_], excess, 0.0)


def _within_of(
    question: Question,
    low: float,
    cap: float,
    depth: NDArray[np.int64],
    m: NDArray[np.int64],
    *,
    often: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The depths and counts that labels leave.

    Args:
        often: whether late stages are passed as often as there is time, not twice.
    """
    more = int(((m - 1) // depth).min()) if often else 1
    # Each late stage is passed once while the slowest does not wait.
    room = question.deadline - (m - 1 - more * depth) * low
    kept = question.within(low, cap, depth, m, room, float(more), more * low, MANY)
    return depth[kept], m[kept]


def _outlast(
    question: Question, way: _Way, low: Array, cap: Array, cells: NDArray[np.intp],
    open_: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Array:  # fmt: skip
    """Leaves the depths and counts at which a pipeline may deliver more than it costs; by which
    share it may."""
    excess = np.zeros(len(cells))
    # The most times that stages may be passed.
    most = np.array([((open_[c][1] - 1) // open_[c][0]).max() + 1 for c in cells])
    times = np.floor(2 * (most[:, None] / 2) ** np.array(way.often))
    times = np.repeat(times, len(way.shares), axis=1)
    lanes = times.shape[1]
    worth = question.size / low[cells, None] * np.tile(way.shares, lanes // len(way.shares))
    room, budget = [], np.zeros((len(cells), lanes))
    for at, cell in enumerate(cells):
        depth, m = (x[:, None] for x in open_[cell])
        k = np.minimum((m - 1) // depth + 1, times[at])
        if way.turning:
            # Of the late stages, all but the early ones, each is passed while it waits.
            left = question.deadline - (m - 1 - (k - 1) * depth) * low[cell]
            left = np.where(k == times[at], left, np.inf)
        else:
            # What a stage is worth to a lane is made for its own number of passes.
            left = (question.deadline - (m - 1 - (k - 1) * depth) * low[cell]) / k * times[at]
        room.append(worth[at] * left)
        needed = np.where(np.isfinite(room[-1]), question.size * m + room[-1], 0.0)
        budget[at] = needed.max(axis=0)
    once, cap_of = worth.ravel(), np.repeat(cap[cells], lanes)
    more = once * (times.ravel() - 1)
    if way.turning:
        asked = Lanes(
            cap_of, once, once, once, MANY, late=more,
            toll=more * np.repeat(low[cells], lanes), turn=np.full(len(once), -1),
            least=np.repeat(low[cells], lanes),
        )  # fmt: skip
    else:
        asked = Lanes(cap_of, once + more, once + more, once, MANY)
    values = question.prices(asked, budget.ravel())
    values = values.reshape(len(values), len(cells), lanes)
    for at, cell in enumerate(cells):
        depth, m = open_[cell]
        found = np.full((len(depth), lanes), np.inf)
        there = depth <= len(values)
        found[there] = values[depth[there] - 1, at]
        known = np.isfinite(room[at])
        price = np.where(known, found - np.where(known, room[at], 0.0), -np.inf)
        share = 1 - price.max(axis=1) / (question.size * m)
        open_[cell] = depth[share > 0], m[share > 0]
        excess[at] = share.max(initial=0.0)
    return excess
