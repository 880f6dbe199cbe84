"""The sending half of a UDP path: a ring of bytes, what of it is lost, what may go now."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from pluribus.comm.transports.datagram import Feedback, read_ring, write_ring
from pluribus.comm.transports.ranges import Ranges
from pluribus.comm.transports.rate import RateControl

SLACK_SECONDS = 2e-3  # a late wake-up may catch up so much
REPEAT_SECONDS = 5e-3  # on top of a round trip, before a lost piece is sent once more


class Burst(NamedTuple):
    """Stream positions [start, end) to send now; ``parity``: their XOR instead of themselves."""

    start: int
    end: int
    parity: bool = False


class Outgoing:
    """No sockets and no clock: it is told the time, so that tests can bring it to any state.

    Args:
        size: of the ring in bytes: the most that can be on the way.
        piece: payload bytes of a datagram.
        parity_every: datagrams that share one XOR datagram; 0: none.
    """

    def __init__(self, size: int, piece: int, rate: RateControl, parity_every: int = 0) -> None:
        self.ring = np.empty(size, np.uint8)
        self.rate = rate
        self.resent = 0
        self.acknowledged = 0  # everything before is there
        self._piece = piece
        self._written = 0  # end of what the path was given
        self._sent = 0  # end of what was sent at least once
        self._limit = 0  # end of what the peer has room for
        self._lost = Ranges()
        self._again = Ranges()  # sent again lately: further complaints are old news
        self._again_times: deque[tuple[float, int, int]] = deque()
        self._parity_span = parity_every * piece
        self._parity_start = 0
        self._parity = np.zeros(piece, np.uint8)  # of what was sent since there
        self._arrived = self._filled = 0
        self._next_time = 0.0
        self._last_sent = 0.0
        self._held = False  # by the window: the path is as fast as it is
        self._behind = False  # of the pace, or held by the peer's room: what arrives is too little

    @property
    def room(self) -> int:
        """Bytes that `write` takes."""
        return len(self.ring) - (self._written - self.acknowledged)

    @property
    def in_flight(self) -> int:
        """Bytes sent that the peer has not reported and that are not known to be lost."""
        return max(0, self._sent - self._arrived - self._filled - self._lost.size)

    @property
    def idle(self) -> bool:
        """Whether everything written was sent at least once."""
        return self._sent == self._written

    def write(self, data: np.ndarray) -> int:
        """Takes as many bytes as there is room for; returns how many."""
        size = min(self.room, len(data))
        write_ring(self.ring, self._written, data[:size])
        self._written += size
        return size

    def next_burst(self, now: float, most: int) -> Burst | None:
        """What to send now, at most ``most`` bytes; None if nothing may be sent yet."""
        if now < self._next_time:
            return None
        burst = self._choose(most)
        if burst is None:
            full = self._limit <= self._sent < self._written
            self._behind = self._behind or full
            self._held = not full and not self.idle
            return None
        self._behind = self._behind or (now > self._next_time + SLACK_SECONDS and not self._held)
        self._held = False
        size = self._piece if burst.parity else burst.end - burst.start
        self._next_time = max(self._next_time, now - SLACK_SECONDS) + size / self.rate.rate
        self._last_sent = now
        return burst

    def _choose(self, most: int) -> Burst | None:
        if len(self._lost):
            start, end = self._lost.pop_first(most)
            self.resent += end - start
            self._again.add(start, end)
            self._again_times.append((self._last_sent, start, end))
            return Burst(start, end)
        span = self._sent - self._parity_start
        if self._parity_span and span and (span >= self._parity_span or self.idle):
            burst = Burst(self._parity_start, self._sent, parity=True)
            self._parity_start = self._sent
            return burst
        window = int(self.rate.window) - self.in_flight
        end = min(self._written, self._limit, self._sent + most)
        if self._parity_span:
            end = min(end, self._parity_start + self._parity_span)
        if end <= self._sent or (window < end - self._sent and self.in_flight):
            end = min(end, self._sent + window // self._piece * self._piece)
            if end <= self._sent:
                return None
        burst = Burst(self._sent, end)
        self._sent = end
        if self._parity_span:
            # Now, because what the peer has may be overwritten before the span is full.
            before = (burst.start - self._parity_start) % self._piece
            data = read_ring(self.ring, burst.start, end - burst.start)
            padded = np.concatenate([np.zeros(before, np.uint8), data])
            self._parity ^= xor_pieces(padded, self._piece)
        return burst

    def wait(self, now: float) -> float | None:
        """Seconds until `next_burst` may have something; None: not before news comes."""
        window_open = self.in_flight + self._piece <= self.rate.window or not self.in_flight
        fresh = self._sent < min(self._written, self._limit) and window_open
        parity = self._parity_span and self.idle and self._parity_start < self._sent
        if len(self._lost) or fresh or parity:
            return max(0.0, self._next_time - now)
        return None

    def parity(self) -> bytes:
        """XOR of the pieces of the parity burst that was chosen last, the last filled up with
        zeros."""
        made = self._parity.tobytes()
        self._parity[:] = 0
        return made

    def told(self, feedback: Feedback, now: float, round_trip: float) -> None:
        """The peer reports what it has and what it misses."""
        if not self._plausible(feedback):
            return
        self.acknowledged = max(self.acknowledged, feedback.mark)
        self._limit = max(self._limit, feedback.limit)
        self._lost.remove(0, self.acknowledged)
        patience = round_trip + REPEAT_SECONDS
        while self._again_times and self._again_times[0][0] < now - patience:
            _, start, end = self._again_times.popleft()
            self._again.remove(start, end)
        holes = list(feedback.holes)
        if feedback.highest < self._sent and now - self._last_sent > patience:
            holes.append((max(feedback.highest, feedback.mark), self._sent))  # the tail is lost
        lost = 0
        for start, end in holes:
            for a, b in self._again.gaps(max(start, self.acknowledged), end):
                lost += self._lost.add(a, b)
        filled = feedback.filled - self._filled
        self._arrived = max(self._arrived, feedback.arrived)
        self._filled = max(self._filled, feedback.filled)
        self.rate.told(
            now, round_trip, feedback.arrived, feedback.clock, lost + max(filled, 0),
            self.in_flight, self.idle or self._behind,
        )  # fmt: skip
        self._behind = False

    def _plausible(self, feedback: Feedback) -> bool:
        """Feedback that was overtaken, or that speaks of bytes never sent, changes nothing."""
        return (
            self.acknowledged <= feedback.mark <= feedback.highest <= self._sent
            and all(0 <= start < end <= self._sent for start, end in feedback.holes)
        )  # fmt: skip


def xor_pieces(data: np.ndarray, piece: int) -> np.ndarray:
    """XOR of all pieces of ``data``, the last filled up with zeros."""
    count = -(-len(data) // piece)
    rows = np.zeros((count, piece), np.uint8)
    rows.reshape(-1)[: len(data)] = data
    return np.bitwise_xor.reduce(rows, axis=0)
