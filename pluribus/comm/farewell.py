"""Paths that are over, kept open until the last word has arrived.

To close a connection on unread data throws away what is still on its way to the peer; so what a
peer must learn (a goodbye, or why the group ends) first reaches its host. Epochs after this one
do not wait for that.
"""

from __future__ import annotations

import time

from pluribus.comm.mesh import Mesh

_LONGEST_SECONDS = 2.0


class Farewells:
    """The paths of epochs that are over. Only the engine's thread calls it."""

    def __init__(self) -> None:
        self._open: list[tuple[Mesh, float]] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, mesh: Mesh) -> None:
        """Takes over paths whose control paths have said the last word."""
        self._open.append((mesh, time.monotonic() + _LONGEST_SECONDS))
        self.turn()

    def turn(self) -> None:
        """Closes what has nothing more to say."""
        still = []
        for mesh, until in self._open:
            for path in mesh.control.values():
                path.flush()
            heard = all(path.delivered for path in mesh.control.values())
            if heard or time.monotonic() > until:
                for path in mesh.paths():
                    path.close()
            else:
                still.append((mesh, until))
        self._open = still
