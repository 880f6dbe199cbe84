"""Which paths are polled, and for what."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

from pluribus.comm.mesh import Mesh
from pluribus.comm.transports.base import Path


class _Descriptor(Protocol):
    def fileno(self) -> int: ...


class Watch:
    """The paths of a mesh that are not read to their ends, and one more descriptor.

    Args:
        wake: always polled for reading.
    """

    def __init__(self, mesh: Mesh, wake: _Descriptor) -> None:
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        self._interest: dict[int, int] = {}
        self._paths = {path.fileno(): path for path in mesh.paths()}

    def __contains__(self, path: Path) -> bool:
        return path.fileno() in self._paths

    def wait(
        self, milliseconds: float, held_up: Callable[[Path], bool]
    ) -> list[tuple[Path | None, int]]:
        """What has happened: a path, or None for the other descriptor, and poll's events.

        Args:
            held_up: whether what comes on a path has no place yet.
        """
        for descriptor, path in self._paths.items():
            wants = select.POLLOUT if path.wants_write else 0
            if not held_up(path) or (path.drains and not path.silent):
                wants |= select.POLLIN
            if wants == self._interest.get(descriptor, 0):
                continue
            self._interest[descriptor] = wants
            if wants:
                self._poll.register(descriptor, wants)
            else:  # even without interest, poll would report an end again and again
                self._poll.unregister(descriptor)
        known = self._paths
        return [(known.get(each), events) for each, events in self._poll.poll(milliseconds)]

    def forget(self, path: Path) -> None:
        """Polls a path no more."""
        descriptor = path.fileno()
        if self._paths.pop(descriptor, None) is not None and self._interest.pop(descriptor, 0):
            self._poll.unregister(descriptor)
