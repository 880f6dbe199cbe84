"""What a forked child must not keep: while a DataLoader's worker has its parent's connections open,
the parent's death ends none of them."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable
from typing import Protocol


class _Owner(Protocol):
    def descriptors(self) -> Iterable[int]: ...


_owners: weakref.WeakSet[_Owner] = weakref.WeakSet()  # hooks of a process cannot be taken back


def keep_from_children(owner: _Owner) -> None:
    """Children forked from now on have nothing behind the owner's descriptors."""
    _owners.add(owner)


def _let_go() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in [each for owner in _owners for each in owner.descriptors()]:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go)
