"""Which pools share pipelines: partitions of the pools into teams."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from pluribus.hardware.cluster import Cluster

Team = tuple[str, ...]

FULL_PARTITIONS = 4  # pools up to which every partition of every subset is weighed


def partitions(pools: Sequence[str], able: Sequence[str]) -> list[tuple[Team, ...]]:
    """Ways to use more than one pool.

    Args:
        pools: addresses.
        able: the pools that hold the model by themselves.
    """
    if len(pools) <= FULL_PARTITIONS:
        subsets = itertools.chain.from_iterable(
            itertools.combinations(pools, n) for n in range(len(pools), 1, -1)
        )
        return [partition for subset in subsets for partition in _set_partitions(subset)]
    pairs = [
        (pair, *((pool,) for pool in able if pool not in pair))
        for pair in itertools.combinations(pools, 2)
    ]
    return [tuple((pool,) for pool in able), *pairs] if able else pairs


def apart(
    pools: Sequence[str], seconds: Callable[[Team], float], most: int
) -> list[tuple[Team, ...]]:
    """The most promising ways to deal all pools to two or more teams.

    Args:
        seconds: of a team for as large a part of the batch as it has of all pools' speed.
        most: ways.
    """
    teams = [team for n in range(1, len(pools)) for team in itertools.combinations(pools, n)]
    pace = {team: 1 / seconds(team) for team in teams}  # 0 where it does not hold the model
    ways = [way for way in _set_partitions(pools) if len(way) > 1 and all(pace[t] for t in way)]
    return sorted(ways, key=lambda way: -sum(pace[team] for team in way))[:most]


def largest(cluster: Cluster, pools: Sequence[str], count: int) -> Team:
    """The pools with the most memory, as one team."""
    return tuple(sorted(pools, key=lambda pool: -cluster.pool(pool).memory)[:count])


def _set_partitions(items: Sequence[str]) -> Iterator[tuple[Team, ...]]:
    """Every way to part items into non-empty teams, order of no importance."""
    if len(items) == 1:
        yield ((items[0],),)
        return
    first, rest = items[0], items[1:]
    for partition in _set_partitions(rest):
        yield ((first,), *partition)
        for i, team in enumerate(partition):
            yield (*partition[:i], (first, *team), *partition[i + 1 :])
