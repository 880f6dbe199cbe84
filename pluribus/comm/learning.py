"""When a group measures, when its ranks tell each other, and when they take the result into use.

Ranks may only change their minds at the same operation. So both moments are counted in operations:
what was noted is summed up by a collective of its own, and used some operations later; if it has
not come by then, it is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

import numpy as np
import torch

End = Callable[[Exception | None], None]

_FIRST, _GROWTH, _LATER = 32, 4, 8


class Moment(Enum):
    """What is due before the next operation."""

    NOTHING = 0
    TELL = 1
    USE = 2


class Learning:
    """One rank's count and clock."""

    def __init__(self) -> None:
        self._count = 0
        self._next = _FIRST
        self._use_at = 0
        self._under_way = 0
        self._told = threading.Event()
        self._error: Exception | None = None
        self._noted: torch.Tensor | None = None

    def count(self) -> Moment:
        """Counts an operation: the 32nd, 128th, 512th … come behind a telling."""
        self._count += 1
        if self._count == self._use_at:
            return Moment.USE
        if self._count == self._next:
            self._next *= _GROWTH
            self._use_at = self._count + _LATER
            return Moment.TELL
        return Moment.NOTHING

    def timed(self, end: End, model: float, note: Callable[[float], None]) -> End:
        """``end``, but the time until then is noted as a multiple of ``model`` seconds, unless
        several operations share the links."""
        alone = self._under_way == 0
        self._under_way += 1
        start = time.perf_counter()

        def ended(error: Exception | None) -> None:
            self._under_way -= 1
            if error is None and alone:
                note((time.perf_counter() - start) / model)
            end(error)

        return ended

    def asks(self, noted: torch.Tensor) -> End:
        """Remembers what the others' figures will be added to; returns what to end it with."""
        self._noted = noted
        self._told.clear()

        def told(error: Exception | None) -> None:
            self._error = error
            self._told.set()

        return told

    def answer(self, timeout: float) -> np.ndarray | None:
        """The smallest of all ranks' figures; None if the group has failed meanwhile."""
        if not self._told.wait(timeout) or self._error is not None or self._noted is None:
            return None
        return self._noted.numpy()
