"""Whether a pipeline is cheap and quick at once, where prices of time leave that open.

A Lagrangian is only as good as the best mix of a cheap pipeline and a quick one; where few stages
make few unlike prices, no pipeline is near that mix. Labels (price, time) of the first stages, of
those that go on alike only such as are not both dearer and slower than another (Hansen 1980), go on
from stage to stage; the tables of the pricing problem tell what the later stages add at least.

A step ends when each stage has summed and updated, a later one after its own last pass: labels know
when the last passes of their stages are, which the tables know of first stages alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.columns import Column, StageChoice
from pluribus.plan.prices import Array
from pluribus.plan.pricing import Solution

_MOST = 3000  # labels beyond which it stays open
_ALIKE = 400  # labels that go on alike, of which more are not compared with each other
_EPS = 1e-12
_COLUMNS = 4  # told of those that are cheap and quick


@dataclass(frozen=True)
class _Labels:
    """First stages, each an array over labels.

    Attributes:
        layer: what comes next begins with.
        sender: of the message to it.
        slow: whether a slow stage is among them.
        price: of their chips.
        end: seconds they take, with the longest tail among them.
        sooner: the same without a tail, up to the last pass of the next stage.
        before, row, length: the label one stage shorter, the last stage's kind and its layers.
    """

    layer: NDArray[np.intp]
    sender: NDArray[np.intp]
    slow: NDArray[np.intp]
    price: Array
    end: Array
    sooner: Array
    before: NDArray[np.intp]
    row: NDArray[np.intp]
    length: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, which: NDArray) -> _Labels:
        return _Labels(*(getattr(self, f.name)[which] for f in fields(self)))

    @classmethod
    def join(cls, parts: list[_Labels]) -> _Labels:
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def undominated(self) -> _Labels:
        """Without those that are dearer and slower than others that go on alike."""
        key = (self.layer * (self.sender.max() + 1) + self.sender) * 2 + self.slow
        order = np.lexsort((self.sooner, self.end, self.price, key))
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        kept = []
        for group in np.split(order, starts[1:]):
            if 1 < len(group) <= _ALIKE:
                better = np.ones((len(group), len(group)), dtype=bool)
                for mine in (self.price[group], self.end[group], self.sooner[group]):
                    better &= mine[:, None] <= mine
                # Of equal ones the first is kept.
                group = group[~np.triu(better, 1).any(axis=0)]
            kept.append(group)
        return self[np.concatenate(kept)]


def cheap_and_quick(
    solution: Solution, depth: int, price: float, time: float, *, returns: bool
) -> tuple[bool, list[Column]]:
    """Whether a pipeline of a depth may cost less than a price and take no longer than a time; some
    that do, where they are known.

    Args:
        solution: with tables, of lanes with a slow stage before the late ones that differ in the
            price of time alone, their `stage`, and have budgets enough.
        returns: whether the time ends with the way back from the last stage, not from the slow one;
            of what comes behind that, the last passes are not known then.
    """
    pricer, lanes = solution.pricer, solution.lanes
    prices, hops, kind = pricer.prices, pricer.hops, pricer.prices.runs.kind
    size, worth, cap = len(kind), lanes.stage, lanes.cap[0]
    late, toll, least, hold = lanes.table[0, 4:8] / np.array([worth[0], worth[0], 1, 1])
    late, limits, longest = late + 1.0, price + worth * time, float(pricer.tails.max())
    first = late > 1  # of the slow stages
    none, nothing = np.zeros(1, np.intp), np.zeros(1)
    labels = _Labels(none, none, none, nothing, nothing, nothing, none, none, none)
    levels = []
    for left in range(depth, 0, -1):
        ahead = _ahead(solution, left, late)
        able = (prices.most_held >= min(left, hold)) & (prices.seconds <= cap)
        found = []
        for layer in np.unique(labels.layer):
            lengths = (
                np.arange(1, size - layer - left + 2) if left > 1 else np.array([size - layer])
            )
            row, q = np.nonzero(able[:, kind[layer, lengths]])
            q = lengths[q]
            run = kind[layer, q]
            seconds, cost = prices.seconds[row, run], solution.price[row]
            sender, pool = hops.senders[row], pricer.pool_of[row]
            tail, last = pricer.tails[row, run], prices.backward[row, run]
            for slow in (0, 1):
                mine = np.flatnonzero((labels.layer == layer) & (labels.slow == slow))
                if not len(mine):
                    continue
                hop = np.zeros((len(mine), len(row)))
                if left < depth:
                    hop = hops.seconds[labels.sender[mine, None], pool]
                for turns in (0, 1) if slow == 0 else (1,):
                    takes = late * seconds if turns else seconds + toll
                    more = (late if slow else 1.0) * hop + takes
                    # What comes after the last pass of this stage: its own tail, or the passes
                    # of the stages before it.
                    sooner = labels.sooner[mine, None] + more - hop / 2
                    end = labels.end[mine, None] + more
                    if returns or not slow:
                        end = np.maximum(end, sooner + tail)
                    new_price = labels.price[mine, None] + cost
                    total = new_price + worth[:, None, None] * end
                    total += ahead[:, turns, sender, layer + q][:, None]
                    good = (total < limits[:, None, None]).all(axis=0)
                    if turns and not slow:
                        good &= seconds >= least
                    elif first == (turns == 0):
                        good &= seconds < least
                    at, option = np.nonzero(good)
                    # A tail that is over before is none.
                    sooner = np.maximum(sooner - last, end - longest)
                    mark = np.full(len(at), turns)
                    whole = (layer + q[option], sender[option], mark)
                    real = (new_price[at, option], end[at, option], sooner[at, option])
                    found.append(_Labels(*whole, *real, mine[at], row[option], q[option]))
        labels = _Labels.join(found) if found else labels[:0]
        if not len(labels):
            return False, []
        labels = labels.undominated()
        if len(labels) > _MOST:
            return True, []
        levels.append(labels)
    good = np.flatnonzero((labels.price < price) & (labels.end <= time * (1 + _EPS)))
    good = good[np.argsort(labels.price[good], kind="stable")]
    columns = [_column(solution, levels, int(at)) for at in good[:_COLUMNS]]
    return bool(len(good)), columns


def _column(solution: Solution, levels: list[_Labels], at: int) -> Column:
    prices, stages = solution.pricer.prices, []
    for labels in reversed(levels):
        end, row = int(labels.layer[at]), int(labels.row[at])
        stages.append(StageChoice(prices.kinds[row], (end - int(labels.length[at]), end)))
        at = int(labels.before[at])
    return Column(tuple(reversed(stages)), prices.micro_batch_size)


def _ahead(solution: Solution, left: int, late: float) -> Array:
    """[lanes, slow, senders, L + 1] least price, with that of time, of what follows a stage with
    so many stages left, itself among them."""
    hops, lanes, tables = solution.pricer.hops.seconds, solution.lanes, solution.tables
    assert tables is not None
    if left == 1:
        end = np.full((len(lanes), 2, len(hops), tables.shape[-1]), np.inf)
        end[:, 1, :, -1] = 0.0
        return end
    weight = lanes.stage[:, None] * np.array([1.0, late])
    message = weight[:, :, None, None] * hops
    return (tables[:, left - 2, :, None] + message[..., None]).min(axis=3)
