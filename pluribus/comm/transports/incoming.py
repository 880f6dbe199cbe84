"""The receiving half of a UDP path: a ring of bytes, what of it is missing, what may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pluribus.comm.transports.base import DATA as DATA_FRAME
from pluribus.comm.transports.base import HEADER_BYTES, unpack
from pluribus.comm.transports.datagram import MOST_HOLES, Feedback, read_ring, write_ring
from pluribus.comm.transports.outgoing import xor_pieces
from pluribus.comm.transports.ranges import Ranges

PARITIES_KEPT = 64
FEEDBACK_SECONDS = 2e-3  # at most so often while bytes come
SHORTEST_PATIENCE = 0.5e-3  # s; datagrams overtake each other by so much
LONGEST_PATIENCE = 10e-3


@dataclass(frozen=True, slots=True)
class Missing:
    """Bytes of a frame's payload that were lost and read as zeros."""

    offset: int
    size: int


class Incoming:
    """No sockets and no clock, as `Outgoing`.

    Args:
        size: of the ring in bytes.
        piece: payload bytes of a datagram.
        lossy: share of each DATA frame's payload that may be filled with zeros; 0: none.
        guard: bytes before the mark that stay in the ring, for parities to work with.
    """

    def __init__(self, size: int, piece: int, lossy: float = 0.0, guard: int = 0) -> None:
        self.ring = np.empty(size, np.uint8)
        self.mark = 0  # everything before is here
        self.consumed = 0
        self.filled = self.rebuilt = 0
        self.missing: dict[int, list[Missing]] = {}  # by the position of the frame's header
        self._piece, self._lossy, self._guard = piece, lossy, guard
        self._have = Ranges()  # from the mark on
        self._highest = 0
        self._arrived = 0
        self._holes: dict[int, float] = {}  # start of a hole -> when it was first seen
        self._parities: list[tuple[int, int, np.ndarray]] = []
        self._frame = 0  # position of the header of the frame the mark is in
        self._frame_end = 0
        self._optional = False
        self._told = (-1.0, 0)  # time and limit of the last feedback
        self._news = False

    @property
    def limit(self) -> int:
        """End of what there is room for."""
        return self.consumed + len(self.ring) - self._guard

    @property
    def told_limit(self) -> int:
        """The limit the sender was told last."""
        return self._told[1]

    def took(self, pieces: Sequence[tuple[int, int]], now: float) -> None:
        """Data [start, end), all between mark and limit, were written into the ring.

        Nothing at all is news too: what came was there already, and the sender must hear so.
        """
        for start, end in joined(pieces):
            self._arrived += self._have.add(start, end)
            self._highest = max(self._highest, end)
        self._advance()
        if self._parities:
            self._rebuild()
        self._news = True
        self._find_holes(now)

    def took_parity(self, start: int, end: int, parity: np.ndarray, now: float) -> None:
        """The XOR of the pieces of [start, end) came."""
        fits = start >= self.consumed - self._guard and end <= self.limit
        if start < end and end > self.mark and fits and len(parity) == self._piece:
            self._parities = [*self._parities[1 - PARITIES_KEPT :], (start, end, parity)]
            self._rebuild()
            self._find_holes(now)

    def _rebuild(self) -> None:
        again = True
        while again:
            again, kept = False, []
            for start, end, parity in self._parities:
                gaps = self._have.gaps(max(start, self.mark), end)
                if not gaps or start < self.consumed - self._guard:
                    continue
                first = (gaps[0][0] - start) // self._piece
                if (gaps[-1][1] - 1 - start) // self._piece != first:
                    kept.append((start, end, parity))
                    continue
                low = start + first * self._piece
                high = min(low + self._piece, end)
                data = read_ring(self.ring, start, end - start)
                data[low - start : high - start] = 0
                lost = (xor_pieces(data, self._piece) ^ parity)[: high - low]
                # Only what is missing: the reader may be reading what lies before the mark.
                for a, b in gaps:
                    write_ring(self.ring, a, lost[a - low : b - low])
                    self._arrived += self._have.add(a, b)
                    self.rebuilt += b - a
                    self._highest = max(self._highest, b)
                self._advance()
                again = True
            self._parities = kept

    def _advance(self) -> None:
        """Moves the mark over what is here, and looks at the frames it passes."""
        for start, end in self._have:
            if start > self.mark:
                break
            self.mark = max(self.mark, end)
        self._have.remove(0, self.mark)
        if self._lossy:
            while self._frame_end + HEADER_BYTES <= self.mark:
                self._frame = self._frame_end
                header = unpack(read_ring(self.ring, self._frame, HEADER_BYTES).tobytes())
                self._frame_end = self._frame + HEADER_BYTES + header.num_bytes
                self._optional = header.kind == DATA_FRAME

    def _find_holes(self, now: float) -> None:
        gaps = self._have.gaps(self.mark, self._highest)[:MOST_HOLES]
        self._holes = {start: self._holes.get(start, now) for start, _ in gaps}

    def give_up(self, now: float, round_trip: float) -> None:
        """Fills holes that may stay and have been waited for with zeros."""
        while self._lossy and self._optional and self._holes:
            gap = self._have.gaps(self.mark, self._highest)
            if not gap or gap[0][0] != self.mark or self.mark >= self._frame_end:
                return
            if now - self._holes.get(self.mark, now) < patience(round_trip):
                return
            size = min(gap[0][1], self._frame_end) - self.mark
            payload = self._frame_end - self._frame - HEADER_BYTES
            frame = self._frame
            so_far = sum(lost.size for lost in self.missing.get(frame, ()))
            if so_far + size > self._lossy * payload:
                return
            write_ring(self.ring, self.mark, np.zeros(size, np.uint8))
            offset = self.mark - frame - HEADER_BYTES
            self.missing.setdefault(frame, []).append(Missing(offset, size))
            self.filled += size
            self._have.add(self.mark, self.mark + size)
            self._highest = max(self._highest, self.mark + size)
            self._news = True
            self._advance()
            self._find_holes(now)

    def feedback(
        self, now: float, round_trip: float, echo: int, held: float, keep_alive: float
    ) -> Feedback | None:
        """What to tell the sender, or None if it knows enough for now."""
        last, limit = self._told
        overdue = now - last >= keep_alive
        opened = self.limit - limit >= len(self.ring) // 4
        repeat = bool(self._holes) and now - last >= max(FEEDBACK_SECONDS, round_trip / 4)
        fresh = (self._news or opened or repeat) and now - last >= FEEDBACK_SECONDS
        if not (overdue or fresh):
            return None
        self._told = now, self.limit
        self._news = False
        old = now - patience(round_trip)
        holes = tuple(
            (start, end)
            for start, end in self._have.gaps(self.mark, self._highest)[:MOST_HOLES]
            if self._holes.get(start, now) <= old
        )
        highest = max(self._highest, self.mark)
        return Feedback(
            self.mark, highest, self.limit, self._arrived, self.filled, now, echo,
            round(held * 1e6), holes,
        )  # fmt: skip

    def wait(self, now: float, keep_alive: float) -> float:
        """Seconds until `feedback` or `give_up` may have something."""
        last = self._told[0]
        soon = FEEDBACK_SECONDS if self._news or self._holes else keep_alive
        return max(0.0, last + soon - now)


def patience(round_trip: float) -> float:
    """Seconds a datagram may be overtaken before it counts as lost."""
    return min(max(round_trip / 8, SHORTEST_PATIENCE), LONGEST_PATIENCE)


def joined(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours made one; a batch of datagrams is mostly one run."""
    out: list[tuple[int, int]] = []
    for start, end in pieces:
        if out and out[-1][1] == start:
            out[-1] = out[-1][0], end
        else:
            out.append((start, end))
    return out
