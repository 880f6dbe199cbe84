"""What pipelines at least as deep as they have micro-batches leave of a proof.

All that a stage holds may be these m micro-batches; what memory allows is then asked with m.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.prices import MANY, Array
from pluribus.plan.pricing import Lanes
from pluribus.plan.proof_question import NARROW, SINGLE, Question

_WIDE = 1.25  # of cells whose values are further apart no price of time is tried
# Those that close most cells on the scaling bench. Of lanes: what a second is worth; how many of
# m − 1 last stages are passed twice, or −1 where stages behind the slowest one are late; further
# passes of these; and waits they are let off.
_FIRST = ((0.9, -1, 0, 1), (0.8, 0.5, 1, 0))
_ROUGH = ((0.7, -1, 0, 1), (1.1, -1, 0, 1), (0.6, 1, 1, 0))
_NARROWLY = (
    *_ROUGH, (0.5, -1, 0, 1), (1.4, -1, 0, 1), (0.3, 1, 1, 0), (0.8, 1, 1, 0), (1.4, 1, 1, 0),
    (0.8, 0, 0, 0), (0.8, -1, -1, 0), (2.0, -1, -1, 0),
)  # fmt: skip


def excess_of_few(question: Question, low: Array, cap: Array, counts: Array) -> Array:
    """[cells] what m ≤ S leave open: all that is in flight may be m micro-batches."""
    result = np.zeros(len(cap))
    cell, first, last = np.arange(len(cap)), np.full(len(cap), question.least), counts.astype(int)
    while len(cell):
        first, last, excess = _left(question, low[cell], cap[cell], first, last)
        narrow = cap[cell] <= low[cell] * NARROW
        for at in np.flatnonzero((first == last) & (cap[cell] <= low[cell] * SINGLE)):
            if not _within(question, low[cell[at]], cap[cell[at]], int(first[at])):
                first[at] += 1
        left = (first == last) | ((first < last) & ~narrow)
        np.maximum.at(result, cell[left], excess[left])
        kept = (first < last) & (result[cell] == 0)
        cell, first, last = cell[kept], first[kept], last[kept]
        middle = (first + last) // 2
        first, last = np.concatenate([first, middle + 1]), np.concatenate([middle, last])
        cell = np.concatenate([cell, cell])
    return result


def _within(question: Question, low: float, cap: float, count: int) -> bool:
    """Whether some pipeline of m stages or more may be worth it."""
    depth = np.arange(count, len(question.pricer.prices.runs.kind) + 1)
    m = np.full(len(depth), count)
    hidden = (1 - question.larger) * low
    room = question.deadline - (count - 1) * low + (depth - 1) * hidden
    return bool(question.within(low, cap, depth, m, room, 0.0, hidden, count).any())


def _left(
    question: Question, low: Array, cap: Array, first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """The first and the last m that are open of those given, and by which share pipelines may
    deliver more there; the first beyond the last where none is."""
    first, last, excess = first.copy(), last.copy(), np.zeros(len(low))
    cells, narrow = np.flatnonzero(first <= last), cap <= low * NARROW
    while len(cells):
        plain = question.plain(cap[cells], question.size * last[cells], first[cells])
        depths = np.arange(1, len(plain) + 1)[:, None]
        most = np.minimum(depths, last[cells])
        need = np.maximum(np.floor(plain / question.size) + 1, first[cells])
        least = np.where(need <= most, need, MANY).min(axis=0).astype(int)
        last[cells] = np.where(need <= most, most, 0).max(axis=0)
        higher = (least > first[cells]) & (least <= last[cells])
        first[cells] = least
        done = cells[~higher & (least <= last[cells])]
        excess[cells] = (1 - plain / (question.size * np.maximum(most, 1))).max(axis=0)
        timed = done[cap[done] <= low[done] * _WIDE]
        for ways in (_FIRST, None):
            if not len(timed):
                break
            ways = ways or (_NARROWLY if narrow[timed].all() else _ROUGH)
            found = plain[:, np.isin(cells, timed)]
            share = _timed(question, low, cap, first, last, timed, found, ways)
            excess[timed] = np.minimum(excess[timed], share)
            timed = timed[first[timed] <= last[timed]]
        cells = cells[higher]
    return first, last, excess


def _timed(
    question: Question, low: Array, cap: Array, first: NDArray[np.int64], last: NDArray[np.int64],
    cells: NDArray[np.intp], plain: Array, ways: tuple[tuple[float, ...], ...],
) -> Array:  # fmt: skip
    """Narrows the m that are open by what a pipeline costs that is in time; `excess`."""
    excess = np.zeros(len(cells))
    theta, twice, late, toll = np.array(ways).T
    lanes, turning = len(theta), twice < 0
    worth = question.size / low[cells, None] * theta
    weight, cap_of = worth.ravel(), np.repeat(cap[cells], lanes)
    # With one of its passes hidden.
    hidden = toll * (1 - question.larger) * low[cells, None]
    twice = np.where(turning, -1, np.floor(twice * (first[cells, None] - 1)))
    # The micro-batches that the slowest stage waits for, and how long for each.
    wait = np.where(turning, 1.0, question.larger) * low[cells, None]
    skipped = np.where(turning, np.where(late < 0, -1, 0), twice)
    asked = Lanes(
        cap_of, weight, weight, weight, np.repeat(first[cells], lanes),
        late=(worth * late).ravel(), toll=(worth * hidden).ravel(),
        turn=twice.ravel(), least=np.repeat(low[cells], lanes),
    )  # fmt: skip
    ends = np.stack([first[cells], last[cells]])[:, :, None]
    room = question.deadline - (ends - 1 - skipped) * wait + (len(plain) - 1) * hidden
    room = worth * room
    values = question.prices(asked, (question.size * ends + room).max(axis=0).ravel())
    values = values.reshape(len(values), len(cells), lanes)
    for at, cell in enumerate(cells):
        m = np.arange(first[cell], last[cell] + 1)
        depth, row = np.nonzero(
            (plain[:, at, None] < question.size * m) & (m <= np.arange(1, len(plain) + 1)[:, None])
        )
        found = np.full((len(depth), lanes), np.inf)
        there = depth < len(values)
        found[there] = values[depth[there], at]
        left = (m[row][:, None] - 1 - skipped[at]) * wait[at]
        price = found - worth[at] * (question.deadline - left + depth[:, None] * hidden[at])
        share = 1 - price.max(axis=1) / (question.size * m[row])
        open_ = m[row][share > 0]
        first[cell], last[cell] = (open_.min(), open_.max()) if len(open_) else (1, 0)
        excess[at] = share.max(initial=0.0)
    return excess
