"""Who is near whom: the islands of a group, and how data is cut over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

MOST_PIECES = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks of a group by island: fast among themselves, slow to the others.

    Attributes:
        islands: group ranks of each island, in order.
    """

    islands: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Layout:
        """From the island's name of every rank."""
        members: dict[str, list[int]] = {}
        for rank, name in enumerate(names):
            members.setdefault(name, []).append(rank)
        return cls(tuple(map(tuple, members.values())))

    @property
    def size(self) -> int:
        return sum(map(len, self.islands))

    @property
    def is_flat(self) -> bool:
        """Whether crossing islands is nothing special: one island, or one rank in each."""
        return len(self.islands) == 1 or all(len(island) == 1 for island in self.islands)

    @property
    def num_pieces(self) -> int:
        """Pieces to cut a buffer into, so that every member of every island owns as much of it
        as its neighbours, whatever the sizes of the islands."""
        sizes = [len(island) for island in self.islands]
        return lcm(*sizes) if lcm(*sizes) <= MOST_PIECES else max(sizes)

    def owner(self, island: int, piece: int) -> int:
        """The member of an island that carries a piece across; its rail."""
        members = self.islands[island]
        return members[piece % len(members)]

    def island_of(self, rank: int) -> int:
        return next(i for i, members in enumerate(self.islands) if rank in members)
