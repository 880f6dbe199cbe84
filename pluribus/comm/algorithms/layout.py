"""Who is near whom: the islands of a group, islands within islands, and who carries what across."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from typing import NamedTuple

_RATE_STEPS = 16  # rates are compared in sixteenths of the fastest: finer is noise of the measuring


class Rail(NamedTuple):
    """Part [start, stop) of any buffer, as shares of it, and its carrier in each island."""

    start: Fraction
    stop: Fraction
    owners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks of a group by island: fast among themselves, slow to the others.

    Attributes:
        islands: group ranks of each island, in order.
        inner: per island its own layout where it is divided in turn (the hosts of a site), else
            None; empty where no island is.
        rates: per group rank, how fast its own link out of its island is, in any unit; empty
            where all are equal.
    """

    islands: tuple[tuple[int, ...], ...]
    inner: tuple[Layout | None, ...] = ()
    rates: tuple[float, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], rates: Sequence[float] = ()) -> Layout:
        """From the island's name of every rank: ``"site/host"``, of as many levels as there are.

        A level that divides nothing (all hosts are of one site) does not count.
        """
        ways = {rank: tuple(name.split("/")) for rank, name in enumerate(names)}
        found = _divide(ways)
        if found is None:  # all near each other
            found = cls((tuple(ways),))
        return cls(found.islands, found.inner, tuple(rates))

    @property
    def size(self) -> int:
        return sum(map(len, self.islands))

    @property
    def is_flat(self) -> bool:
        """Whether crossing islands is nothing special: one island, or one rank in each."""
        return len(self.islands) == 1 or all(len(island) == 1 for island in self.islands)

    def inside(self, island: int) -> Layout | None:
        """The layout of an island that is divided itself."""
        return self.inner[island] if self.inner else None

    def island_of(self, rank: int) -> int:
        return next(i for i, members in enumerate(self.islands) if rank in members)

    def carrier(self, island: int, at: Fraction) -> int:
        """The member of an island that carries what lies at this share of a buffer, in [0, 1):
        each carries as much as its link out of the island is fast."""
        return self.islands[island][bisect_right(_bounds(self._weights(island)), at)]

    def leaves(self) -> list[tuple[int, ...]]:
        """The innermost islands: ranks that are all near each other."""
        found: list[tuple[int, ...]] = []
        for island, members in enumerate(self.islands):
            inner = self.inside(island)
            found += [members] if inner is None else inner.leaves()
        return found

    def rails(self) -> list[Rail]:
        """A buffer cut so that each piece has one carrier in every island, and every member of
        every island carries its share, whatever the sizes of the islands.

        Islands of equal size and speed pair their members (same rail to same rail); others are
        cut at the bounds of all.
        """
        cuts = sorted(
            {stop for i in range(len(self.islands)) for stop in _bounds(self._weights(i))}
        )
        return [
            Rail(start, stop, tuple(self.carrier(i, start) for i in range(len(self.islands))))
            for start, stop in zip([Fraction(0), *cuts[:-1]], cuts, strict=True)
        ]

    def homes(self, number: int) -> list[int]:
        """For each of ``number`` pieces, the island that adds it up when there are more than two.

        Of what it adds up an island sends and receives C − 1 copies, of the rest one. Shares are
        those with which the slowest link is done first: an island far slower than the others
        adds up nothing.
        """
        count = len(self.islands)
        if not self.rates or count < 3:
            return [piece % count for piece in range(number)]
        shares = _home_shares(_steps([sum(self.rates[r] for r in i) for i in self.islands]))
        given = [0] * count
        homes = []
        for piece in range(1, number + 1):
            home = max(range(count), key=lambda i: (shares[i] * piece - given[i], -i))
            given[home] += 1
            homes.append(home)
        return homes

    def _weights(self, island: int) -> tuple[int, ...]:
        members = self.islands[island]
        if not self.rates:
            return (1,) * len(members)
        return _steps([self.rates[rank] for rank in members])


def _steps(rates: Sequence[float]) -> tuple[int, ...]:
    """In sixteenths of the fastest, at least one."""
    return tuple(max(1, round(_RATE_STEPS * rate / max(rates))) for rate in rates)


@cache
def _bounds(weights: tuple[int, ...]) -> tuple[Fraction, ...]:
    return tuple(Fraction(stop, sum(weights)) for stop in accumulate(weights))


@cache
def van_der_corput(number: int) -> Fraction:
    """Points of [0, 1) that any run of numbers covers evenly: 0, 1/2, 1/4, 3/4, 1/8 …"""
    digits = f"{number:b}"[::-1]
    return Fraction(int(digits, 2), 1 << len(digits))


def _divide(ways: dict[int, tuple[str, ...]]) -> Layout | None:
    """The layout of ranks by their names' parts; None where they are all near each other."""
    groups: dict[str, dict[int, tuple[str, ...]]] = {}
    for rank, way in ways.items():
        groups.setdefault(way[0] if way else "", {})[rank] = way[1:]
    if len(groups) == 1:
        deeper = next(iter(groups.values()))
        return _divide(deeper) if any(deeper.values()) else None
    inner = tuple(_divide(group) for group in groups.values())
    return Layout(tuple(map(tuple, groups.values())), inner if any(inner) else ())


def _home_shares(rates: Sequence[int]) -> list[Fraction]:
    """Shares w ≥ 0 that sum to 1 and make the largest (1 + (C − 2) w_i) / rate_i smallest: those
    of the islands that add up anything are all done at the same time."""
    count = len(rates)
    shares = [Fraction(0)] * count
    busy = sorted(range(count), key=lambda i: -rates[i])
    while True:
        # 1 + (C − 2) w_i = t · rate_i for all that are busy, and their w sum to 1
        until = Fraction(len(busy) + count - 2, sum(rates[i] for i in busy))
        if until * rates[busy[-1]] >= 1:
            break
        busy.pop()
    for i in busy:
        shares[i] = (until * rates[i] - 1) / (count - 2)
    return shares
