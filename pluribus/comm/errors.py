"""What can go wrong in a collective. RuntimeErrors, as c10d's callers expect."""

from __future__ import annotations

from collections.abc import Sequence


class CollectiveError(RuntimeError):
    """A collective or message did not come to its end.

    Attributes:
        ranks: of the group, at fault as far as is known.
    """

    def __init__(self, what: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(what)
        self.ranks = tuple(ranks)


class PeerDied(CollectiveError):  # noqa: N818
    """A peer's process ended or became unreachable."""


class PeerLeft(PeerDied):
    """A peer has left the group, and something it would have to take part in cannot end."""


class PeerStalled(CollectiveError):  # noqa: N818
    """A peer is connected but has stopped answering."""


class CollectiveTimeout(CollectiveError):  # noqa: N818
    """The group's time for one operation is over; names the peers that this rank waits for and that
    sent nothing of it. Where ranks talk to a few only, that one may wait in turn."""


class Aborted(CollectiveError):  # noqa: N818
    """Somebody gave the group up."""


class Mismatch(CollectiveError):  # noqa: N818
    """Ranks called different collectives, or with tensors of different sizes."""


class SilentCorruption(CollectiveError):  # noqa: N818
    """Results that must be equal on all ranks are not."""
