"""Scratch memory of collectives, kept from one to the next: new pages cost more than copying."""

from __future__ import annotations

import threading

import torch

from pluribus.core.units import MIB

KEPT_BYTES = 256 * MIB


class Scratch:
    """A small store of buffers; `take` and `give_back` may run in different threads.

    Args:
        kept_bytes: what it keeps at most; beyond it the oldest goes.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._lock = threading.Lock()
        self._kept: list[torch.Tensor] = []  # oldest first

    def take(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] of any content."""
        with self._lock:
            for at, buffer in enumerate(self._kept):
                if len(buffer) == num_bytes:  # the collectives of a training loop repeat
                    return self._kept.pop(at)
        return torch.empty(num_bytes, dtype=torch.uint8)

    def give_back(self, buffer: torch.Tensor) -> None:
        """Nobody uses what was taken any more."""
        with self._lock:
            self._kept.append(buffer)
            while sum(map(len, self._kept)) > self._limit:
                self._kept.pop(0)
