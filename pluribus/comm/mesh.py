"""The paths of a group in one epoch, by what they are for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pluribus.comm.costs import LinkCost
from pluribus.comm.transports.base import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Paths to every peer.

    Attributes:
        epoch: goes into headers.
        data: peer → lanes for chunks of collectives.
        messages, control: peer → path. Nothing ever holds up what comes on a control path.
        via: peer → the member that passes on what goes there, where there is no direct way.
    """

    epoch: int = 0
    data: Mapping[int, Sequence[Path]] = field(default_factory=dict)
    messages: Mapping[int, Path] = field(default_factory=dict)
    control: Mapping[int, Path] = field(default_factory=dict)
    via: Mapping[int, int] = field(default_factory=dict)

    def paths(self) -> list[Path]:
        lanes = [path for paths in self.data.values() for path in paths]
        return [*lanes, *self.messages.values(), *self.control.values()]

    def packets(self, peer: int) -> tuple[int, int]:
        """`Path.packets` of the path for messages to a peer."""
        path = self.messages.get(peer)
        return path.packets if path is not None else (0, 0)

    def lost_aggregator(self) -> bool:
        """Whether paths go to what takes an aggregator's place."""
        return any(path.needs_all for path in self.paths())

    def adapt(self, links: Mapping[int, LinkCost]) -> None:
        """Lets the paths to peers be what suits the links to them."""
        for peer, link in links.items():
            if peer in self.messages:
                for path in (*self.data[peer], self.messages[peer]):
                    path.adapt(link.latency_s, link.bytes_per_s, link.loss)

    def numbered(self, peer: int) -> list[Path]:
        """The paths to one peer, in the same order at both ends."""
        return [*self.data[peer], self.messages[peer], self.control[peer]]


def drop_stale(path: Path, epoch: int) -> bool:
    """Drops the frame at a path's head if it is of another epoch."""
    header = path.peek()
    if header is None or header.epoch == epoch:
        return False
    if path.receive() is not None:
        path.release()
    return True


def end_all(endings: Iterable[Callable[..., None]], *how: object) -> None:
    """Tells everybody that waits how it ended, whatever some of them make of it."""
    for done in endings:
        try:
            done(*how)
        except Exception:
            _log.exception("what an operation was to do at its end failed")
