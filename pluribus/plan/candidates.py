"""Teams worth scoring: mixes of generated columns, and repeated shapes of a few pools.

Gradient sums make some columns belong together: like pipelines sum each layer inside one pool,
while unlike ones sum it across pools. The master problem sees only an average of that, so besides
its own mixes every way for a few pools to share like pipelines goes into the race.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pluribus.plan.columns import Column, StageChoice, StageKind, Team
from pluribus.plan.generate import Generator
from pluribus.plan.master import least_money
from pluribus.plan.prices import Array
from pluribus.plan.rounding import (
    deal,
    repeated,
    repeated_seconds,
    whole_team,
    whole_teams,
    worthwhile,
)
from pluribus.plan.shape_space import LEFT_OVER
from pluribus.plan.shapes import Candidate, ShapeFinder
from pluribus.plan.sums import team_seconds
from pluribus.plan.teams import FULL_PARTITIONS, apart, largest, partitions

_REPEATED = 12  # generated columns tried as the only one of a plan
_SHAPES = 12_000  # shapes of a group of pools beyond which they are not gone through
_MUCH_SLOWER = 1.02  # mixes of fractions slower than the best by this are not made whole
# How much longer all may wait for their sums, as a share of a step, and with each wait the share of
# their chips' worth that its columns have to deliver: more columns hold better mixes, of fewer the
# integer program finds better ones.
_WAITS_OF_FEW = ((0.005, (0.0, 0.97)), (0.02, (0.0,)), (0.04, (0.0,)), (0.08, (0.0, 0.97)))
_WAITS = (
    (0.0025, (0.95,)), (0.005, (0.97,)), (0.01, (0.97,)), (0.02, (0.97, 0.985)), (0.04, (0.985,)),
)  # fmt: skip
_WAITS_WIDE = ((0.02, (0.985,)),)
_DEPTHS = 6  # of each pipeline: see `Generator.price`
_SKEW, _SKEWED = 1.04, 2  # of the price of a pool's chips, and how many pools' prices
_SLOWEST, _PATIENCE = 100.0, 12  # steps up to so many times the quickest, and how many of them
_TOGETHER = 6  # pools up to which the largest few share one kind of pipeline
_APART, _CUTS_APART = 4, 24  # ways to part all of more pools, and shapes cut for a group of each
_HOPELESS = 1.1  # times the quickest team so far: whose passes take longer is not looked at closer
_BESIDE = (1, 2, 4, 8)  # pipelines of a column at a time, whose members may share nodes
_SMALL = 256  # chips up to which every way to group pools is tried
_KEEP = 2  # shapes kept per group of pools and micro-batch size
_KEEP_OF_FEW = 8  # where chips may be left over


def teams(
    generator: Generator, finder: ShapeFinder, deadline: float, able: Sequence[str]
) -> list[Team]:
    """Teams, most promising first by their estimated step.

    Args:
        deadline: the step of the best mix of fractions.
        able: pools that hold the model by themselves.
    """
    found: dict[Team, float] = {}
    best = np.inf
    for team in _proposals(generator, finder, deadline, able):
        if team not in found:
            found[team] = estimate(generator, team, _HOPELESS * best)
            best = min(best, found[team])
    # No team of columns is quicker than their best mix of fractions.
    for team in _mixed(generator, deadline, best):
        if team not in found:
            found[team] = estimate(generator, team)
    # Their sums stay inside pools, which no mix counts on: they must not end the search for mixes.
    for team in _islands(generator, finder):
        found.setdefault(team, estimate(generator, team))
    return sorted(found, key=found.__getitem__)


def cheap_teams(generator: Generator, deadline: float, limit: float | None) -> list[Team]:
    """Teams of little money, cheapest first by their estimate.

    Args:
        deadline: the step of the best mix of fractions.
        limit: seconds a step may take; None for any.
    """
    columns = generator.columns
    chips = generator.chips_of(columns)
    hourly = hourly_price(generator) @ chips
    steps = deadline * np.geomspace(1.0, _SLOWEST, _PATIENCE)
    if limit is not None:
        steps = np.append(steps[steps < limit], limit * np.array([0.94, 0.98, 0.995, 1.0]))
    found: dict[Team, float] = {}
    for seconds in steps:
        values = generator.delivered(columns, float(seconds))
        mix = least_money(hourly, values, chips, generator.available, generator.batch, whole=True)
        if mix is None:
            continue
        uses = {c: int(n) for c, n in zip(columns, mix.uses, strict=True) if n}
        team = deal(generator, uses)
        if team is not None:
            found[team] = mix.total * estimate(generator, team)
    return sorted(found, key=found.__getitem__)


def hourly_price(generator: Generator) -> Array:
    """[pools] money of one chip for an hour."""
    prices = [generator.setting.pool(pool).price_per_chip_hour for pool in generator.pools]
    return np.array(prices)


def estimate(generator: Generator, team: Team, most: float = np.inf) -> float:
    """Seconds of a team's step, its gradient sums those of its own mix of columns.

    Args:
        most: of teams whose passes alone take longer only those count.
    """
    paces = [generator.timed_pace(item.column, max(item.micro_batches)) for item in team]
    last = max(
        p.seconds(max(item.micro_batches)) - p.tail for p, item in zip(paces, team, strict=True)
    )
    if last > most:
        return last
    return team_seconds(generator.setting, team, paces, beside=generator.beside)


def _proposals(
    generator: Generator, finder: ShapeFinder, deadline: float, able: Sequence[str]
) -> Iterator[Team]:
    apart = [column for column in generator.columns if len(column.chips) == 1]
    if apart and len(generator.pools) > 1:
        islands = whole_team(generator, generator.deadline(deadline, apart), apart)
        if islands is not None:
            yield islands
    alike = sorted(generator.columns, key=lambda column: repeated_seconds(generator, column))
    found = (repeated(generator, column) for column in alike)
    yield from itertools.islice((team for team in found if team is not None), _REPEATED)
    if generator.available.sum() <= _SMALL:
        # With many pipelines mixes of columns gain all that sharing out gains.
        yield from _grouped(generator, finder, able)


def _islands(generator: Generator, finder: ShapeFinder) -> Iterator[Team]:
    """Each pool by itself in the shape in which it is quickest with the whole batch."""
    for size in generator.pricers:
        if generator.batch % size or len(generator.pools) == 1:
            continue
        found = [finder.best((pool,), size, generator.batch)[:1] for pool in generator.pools]
        uses = {column_of(c): c.shape.pipelines for each in found for c in each}
        if uses and sum(uses.values()) * size <= generator.batch:
            team = deal(generator, uses, {c: generator.pace(c).with_tail(0.0) for c in uses})
            if team is not None:
                yield team


def _mixed(generator: Generator, deadline: float, best: float) -> Iterator[Team]:
    """Mixes of all columns, and of those that begin with a wide stage: a sum has as many rings as
    its narrowest member has tensor-parallel ranks, and no pass hides the first layers' sums.

    Columns that make others wait a little longer for their sums may fill the chips better.

    Args:
        best: the least estimate of other teams.
    """
    if deadline > best:
        return
    few = generator.available.sum() <= _SMALL  # any column may fill what the others leave over
    generator = generator.aside()
    if not few:
        prices, _ = generator.prices(deadline)
        generator.price(deadline, prices, _DEPTHS)
        for pool in range(1, min(len(prices), _SKEWED + 1)):
            skewed = np.where(np.arange(len(prices)) == pool, _SKEW, 1.0) * prices
            generator.price(deadline, skewed, _DEPTHS)
    opening = {c: c.stages[0].kind.tensor_parallel for c in generator.columns}
    tried: set[tuple[Column, ...]] = set()
    for width in sorted(set(opening.values())):
        wide = [column for column, first in opening.items() if first >= width]
        least = generator.deadline(deadline, wide)
        if least > min(_MUCH_SLOWER * deadline, best):
            return
        generator.take_sums_of(generator.mix(least, wide).uses, wide)
        tail = generator.shared_tail
        # Shared nodes leave short waits, and have four mixes made for each.
        ways = _WAITS_OF_FEW if few else _WAITS if width == 1 else _WAITS_WIDE
        for wait, shares in ways[:1] if generator.beside and not few else ways:
            able = generator.share(wide, tail + wait * least)
            soonest = generator.deadline(generator.ideal_seconds, able)
            for share in shares:
                columns = tuple(worthwhile(generator, soonest, able, share))
                if columns not in tried:
                    tried.add(columns)
                    for together in _BESIDE if generator.beside and not few else (1,):
                        yield from whole_teams(generator, soonest, columns, together)


def _grouped(generator: Generator, finder: ShapeFinder, able: Sequence[str]) -> Iterator[Team]:
    """Pools in groups that share like pipelines, in every way for a few pools."""
    pools = generator.pools
    ways = [*partitions(pools, able), *(((pool,),) for pool in able)]
    if FULL_PARTITIONS < len(pools) <= _TOGETHER:
        cluster = generator.setting.cluster
        ways += [(largest(cluster, pools, n),) for n in range(2, len(pools) + 1)]
        yield from _apart(generator, finder)
    for way in ways:
        for size in generator.pricers:
            if generator.batch % size == 0:
                yield from _deals(generator, finder, way, size)


def _apart(generator: Generator, finder: ShapeFinder) -> Iterator[Team]:
    """All pools in groups of which each has pipelines of its own: with many kinds of few chips one
    pipeline wastes more on whole layers than two unlike ones."""
    size = min(generator.pricers)
    if generator.batch % size:
        return

    def seconds(group: tuple[str, ...]) -> float:
        if finder.num_shapes(group) > _SHAPES:
            return np.inf
        return finder.bound(group, size, _dealt(generator, group, generator.pools, size))

    for way in apart(generator.pools, seconds, _APART):
        yield from _deals(generator, finder, way, size, _CUTS_APART)


def _dealt(generator: Generator, group: Sequence[str], pools: Sequence[str], size: int) -> int:
    """A group's part of the batch, by its part of these pools' speed."""
    speed = dict(zip(generator.pools, generator.available * generator.speeds, strict=True))
    share = sum(speed[pool] for pool in group) / sum(speed[pool] for pool in pools)
    return max(size, round(generator.batch * share))


def _deals(
    generator: Generator,
    finder: ShapeFinder,
    way: Sequence[tuple[str, ...]],
    size: int,
    cuts: int | None = None,
) -> Iterator[Team]:
    batch, pools = generator.batch, [pool for group in way for pool in group]
    options = []
    for group in way:
        if finder.num_shapes(group) > _SHAPES:
            return
        sequences = _dealt(generator, group, pools, size)
        keep = _KEEP if len(way) <= FULL_PARTITIONS else 1
        if len(way) == 1 and generator.available.sum() <= LEFT_OVER:
            keep = _KEEP_OF_FEW
        options.append(finder.best(group, size, sequences, keep, cuts))
    for choice in itertools.product(*options):
        uses = {column_of(candidate): candidate.shape.pipelines for candidate in choice}
        if sum(uses.values()) * size <= batch:
            team = deal(generator, uses)
            if team is not None:
                yield team


def column_of(candidate: Candidate) -> Column:
    """One of a candidate's like pipelines."""
    shape = candidate.shape
    kinds = [
        StageKind(pool, tp, shape.recompute)
        for pool, count, tp in zip(shape.pools, shape.stages, shape.tensor_parallel, strict=True)
        for _ in range(count)
    ]
    stages = zip(kinds, candidate.layers, strict=True)
    return Column(tuple(StageChoice(k, cut) for k, cut in stages), shape.micro_batch_size)
