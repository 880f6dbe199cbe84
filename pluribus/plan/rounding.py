"""Whole pipelines out of fractions: integer mixes of columns, and an exact deal of the batch."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from pluribus.plan.columns import Column, PipelineClass, Team
from pluribus.plan.generate import Generator
from pluribus.plan.master import most_sequences
from pluribus.plan.pace import Pace

_MIXES = 2  # teams of one pool of columns
_TRIES = 12  # deadlines tried for one integer mix
_LATER = 0.002  # by how much a deadline grows whose mix cannot be dealt the batch
_SOONER = 1e-4  # a team that ends sooner by less is the last


def whole_team(
    generator: Generator, deadline: float, columns: Sequence[Column] | None = None
) -> Team | None:
    """The team of whole pipelines that ends soonest."""
    return next(iter(whole_teams(generator, deadline, columns)), None)


def whole_teams(
    generator: Generator,
    deadline: float,
    columns: Sequence[Column] | None = None,
    together: int = 1,
) -> list[Team]:
    """Teams of whole pipelines, the one that ends soonest first.

    What delivers most by a deadline that is too short ends soon after it: the next deadline is
    that end (Dinkelbach 1967), and once is enough.

    Args:
        generator: with the columns and their pace.
        deadline: no mix of fractions is quicker.
        columns: to choose from; all that are known by default.
        together: so many pipelines of a column at a time, which can sum inside their nodes first.
    """
    columns = tuple(generator.columns if columns is None else columns)
    chips = together * generator.chips_of(columns)
    found: dict[Team, float] = {}
    for _ in range(_TRIES):
        values = together * generator.delivered(columns, deadline)
        mix = most_sequences(values, chips, generator.available, whole=True)
        if mix is None or not mix.total:
            break
        uses = {c: together * int(n) for c, n in zip(columns, mix.uses, strict=True) if n}
        team = deal(generator, uses)
        if team is None:
            deadline *= 1 + _LATER
            continue
        soonest, end = min(found.values(), default=np.inf), _end(generator, team)
        found.setdefault(team, end)
        if end > (1 - _SOONER) * soonest or len(found) == _MIXES:
            break
        deadline = end
    return sorted(found, key=found.__getitem__)


def _end(generator: Generator, team: Team) -> float:
    return max(generator.pace(c.column).seconds(max(c.micro_batches)) for c in team)


def worthwhile(
    generator: Generator, deadline: float, columns: Sequence[Column], share: float
) -> list[Column]:
    """The columns that deliver at least this share of what their chips are worth to the mix."""
    worth = generator.mix(deadline, columns).chip_values @ generator.chips_of(columns)
    good = generator.delivered(columns, deadline) >= share * worth
    return [column for column, near in zip(columns, good, strict=True) if near]


def deal(
    generator: Generator, uses: Mapping[Column, int], paces: Mapping[Column, Pace] | None = None
) -> Team | None:
    """Deals the global batch to pipelines, so that the last one ends as early as can be.

    Args:
        uses: how many pipelines of each column.
        paces: of the columns; by default those that the generator knows.

    Returns:
        The team, without pipelines that get nothing; None when the micro-batch sizes cannot sum
        to the batch.
    """
    pipelines = [column for column, count in uses.items() for _ in range(count)]
    paces = paces or {column: generator.pace(column) for column in uses}
    batch = generator.batch

    def delivered(seconds: float) -> int:
        return sum(n * c.micro_batch_size * paces[c].most(seconds) for c, n in uses.items())

    low = min(pace.seconds(1) for pace in paces.values())
    high = max(low, generator.ideal_seconds)
    if sum(n * c.micro_batch_size * paces[c].limit for c, n in uses.items()) < batch:
        return None
    while delivered(high) < batch:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if delivered(middle) >= batch else (middle, high)
    for _ in range(4):
        counts = [paces[column].most(high) for column in pipelines]
        dealt = _exactly(counts, pipelines, batch, paces)
        if dealt is not None:
            break
        high = min(pace.seconds(pace.most(high) + 1) for pace in paces.values())
    if dealt is None:
        return None
    team = []
    for column in uses:
        mine = [n for n, c in zip(dealt, pipelines, strict=True) if c is column and n]
        if mine:
            team.append(PipelineClass(column, tuple(sorted(mine, reverse=True))))
    return tuple(team)


def redealt(generator: Generator, team: Team, lasts: Sequence[float]) -> Team | None:
    """The batch dealt anew by what a timeline says of a team.

    Args:
        lasts: [classes] when the last pipeline of each has done its last backward.

    Returns:
        The team, None if its last backwards end no sooner.
    """
    paces = {}
    for item, last in zip(team, lasts, strict=True):
        pace = generator.pace(item.column).with_tail(0.0)
        paces[item.column] = pace.with_tail(last - pace.seconds(max(item.micro_batches)))
    dealt = deal(generator, {item.column: item.count for item in team}, paces)
    if dealt is None:
        return None
    end = max(paces[item.column].seconds(max(item.micro_batches)) for item in dealt)
    return dealt if end < (1 - _SOONER) * max(lasts) else None


def _exactly(
    counts: list[int], pipelines: Sequence[Column], batch: int, paces: Mapping
) -> list[int] | None:
    """Takes away what is beyond the batch, from the pipelines that end last; None if the sizes of
    their micro-batches cannot make up the difference."""
    counts = list(counts)
    sizes = [column.micro_batch_size for column in pipelines]
    excess = sum(n * b for n, b in zip(counts, sizes, strict=True)) - batch
    takes = _coins(excess, sizes, counts)
    if takes is None:
        return None

    def ends(i: int) -> tuple[float, int]:
        return -paces[pipelines[i]].seconds(counts[i]), -i

    for size, number in takes.items():
        last = [ends(i) for i, b in enumerate(sizes) if b == size and counts[i]]
        heapq.heapify(last)
        for _ in range(number):
            i = -last[0][1]
            counts[i] -= 1
            if counts[i]:
                heapq.heapreplace(last, ends(i))
            else:
                heapq.heappop(last)
    return counts


def _coins(amount: int, sizes: Sequence[int], counts: Sequence[int]) -> dict[int, int] | None:
    """How many micro-batches of each size make up an amount, large ones first; None if none do."""
    room: dict[int, int] = {}
    for size, count in zip(sizes, counts, strict=True):
        room[size] = room.get(size, 0) + count
    order = sorted(room, reverse=True)

    def pay(left: int, at: int) -> dict[int, int] | None:
        if left == 0:
            return {}
        if at == len(order):
            return None
        size = order[at]
        most = min(left // size, room[size])
        # A few fewer can help where sizes do not divide each other.
        for number in range(most, max(most - 8, -1), -1):
            rest = pay(left - number * size, at + 1)
            if rest is not None:
                return {size: number, **rest}
        return None

    return pay(amount, 0)


def repeated(generator: Generator, column: Column) -> Team | None:
    """As many pipelines of one column as there are chips for."""
    count = _times(generator, column)
    return deal(generator, {column: count}) if count else None


def repeated_seconds(generator: Generator, column: Column) -> float:
    """The estimated step of `repeated`, whose pipelines share the batch evenly."""
    count, batches = _times(generator, column), generator.batch // column.micro_batch_size
    return generator.pace(column).seconds(-(-batches // count)) if count else np.inf


def _times(generator: Generator, column: Column) -> int:
    """How often a column can be used by itself."""
    taken = generator.chips_of([column])[:, 0]
    fits = np.floor(generator.available[taken > 0] / taken[taken > 0]).min()
    return int(min(fits, generator.batch // column.micro_batch_size))
