"""Sets of byte positions as sorted, disjoint half-open ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """A set of positions; neighbours are joined, so it is as short as it can be."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        """How many ranges, not how many positions."""
        return len(self._starts)

    @property
    def size(self) -> int:
        """How many positions."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> int:
        """Puts [start, end) in; returns how many positions are new."""
        if start >= end:
            return 0
        i = bisect_left(self._ends, start)
        j = bisect_right(self._starts, end)
        had = sum(
            max(0, min(e, end) - max(s, start))
            for s, e in zip(self._starts[i:j], self._ends[i:j], strict=True)
        )
        if i < j:
            joined = min(start, self._starts[i]), max(end, self._ends[j - 1])
        else:
            joined = start, end
        self._starts[i:j], self._ends[i:j] = [joined[0]], [joined[1]]
        return end - start - had

    def remove(self, start: int, end: int) -> None:
        """Takes [start, end) out, whatever of it is in."""
        i = bisect_right(self._ends, start)
        j = bisect_left(self._starts, end)
        if start >= end or i >= j:
            return
        left = [(self._starts[i], start)] if self._starts[i] < start else []
        right = [(end, self._ends[j - 1])] if end < self._ends[j - 1] else []
        kept = left + right
        self._starts[i:j] = [s for s, _ in kept]
        self._ends[i:j] = [e for _, e in kept]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in, in order."""
        i = bisect_right(self._ends, start)
        out, at = [], start
        while i < len(self._starts) and self._starts[i] < end:
            if at < self._starts[i]:
                out.append((at, self._starts[i]))
            at = self._ends[i]
            i += 1
        if at < end:
            out.append((at, end))
        return out

    def pop_first(self, most: int) -> tuple[int, int]:
        """Takes out the first range, or its first ``most`` positions."""
        start, end = self._starts[0], self._ends[0]
        if end - start > most:
            self._starts[0] = start + most
            return start, start + most
        del self._starts[0], self._ends[0]
        return start, end
