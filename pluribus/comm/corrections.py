"""Where measurements contradict the cost model, they win: one factor per operation, algorithm and
size, the same on every rank.

Each rank notes measured ÷ predicted of what it runs. A rank that comes late waits for nobody and
one that comes early waits for all, so the smallest ratio over ranks and over a while says how long
the algorithm itself takes. Beyond 1.3 (or below 1/1.3) it becomes the factor, and the algorithm is
compared with the others by it from then on. An algorithm is thus avoided only after it was tried,
and the next best then gets its chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pluribus.comm.algorithms.registry import ALGORITHMS

TOLERANCE = 1.3
_SMALLEST, _BUCKETS = 8, 12  # from 2^8 bytes on, in steps of four
_OPERATIONS = tuple(name for name, known in ALGORITHMS.items() if len(known) > 1)
_KEYS = [
    (operation, name, bucket)
    for operation in _OPERATIONS
    for name in ALGORITHMS[operation]
    for bucket in range(_BUCKETS)
]
_AT = {key: number for number, key in enumerate(_KEYS)}


class Corrections:
    """What one group has learned.

    Attributes:
        noted: smallest measured ÷ predicted of each key since the last decision; infinite where
            there is none.
    """

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        self.noted = np.full(len(_KEYS), np.inf, dtype=np.float32)
        self._factors: dict[tuple[str, str, int], float] = {}
        for said, factor in (known or {}).items():
            operation, name, bucket = said.split("/")
            key = (operation, name, int(bucket))
            if key in _AT and 0 < factor < math.inf:
                self._factors[key] = float(factor)

    def factor(self, operation: str, name: str, num_bytes: int) -> float:
        """What to multiply a prediction by."""
        return self._factors.get((operation, name, _bucket(num_bytes)), 1.0)

    def note(self, operation: str, name: str, num_bytes: int, ratio: float) -> None:
        """Takes a measured time ÷ the model's own prediction, without factor."""
        at = _AT.get((operation, name, _bucket(num_bytes)))
        if at is not None and ratio < self.noted[at]:
            self.noted[at] = ratio

    def decide(self, smallest: np.ndarray) -> bool:
        """Takes the factors from the smallest ratios over all ranks; every rank calls it with the
        same. Whether any factor has changed."""
        before = dict(self._factors)
        for key, ratio in zip(_KEYS, smallest.tolist(), strict=True):
            if math.isfinite(ratio) and ratio > 0:
                now = self._factors.get(key, 1.0)
                if not 1 / TOLERANCE <= ratio / now <= TOLERANCE:
                    self._factors[key] = ratio
        self.noted.fill(np.inf)
        return self._factors != before

    def forget(self, name: str) -> None:
        """What is known of an algorithm that is not there any more."""
        self._factors = {key: known for key, known in self._factors.items() if key[1] != name}

    def to_json(self) -> dict[str, float]:
        return {"/".join(map(str, key)): factor for key, factor in self._factors.items()}


def _bucket(num_bytes: int) -> int:
    power = (max(num_bytes, 1).bit_length() - 1 - _SMALLEST) // 2
    return min(max(power, 0), _BUCKETS - 1)
