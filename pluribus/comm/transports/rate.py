"""How fast a UDP path may send: the measured bottleneck rate, probed a little, little queued.

A small BBR (Cardwell et al. 2016, "BBR: congestion-based congestion control"): the path is
modelled by the largest delivery rate of the last rounds and the smallest round trip of the last
seconds; the sender paces at the first and keeps at most twice their product in flight. Random
loss does not slow it down. Loss together with a queue, or very much loss, does (as in BBR v2).
"""

from __future__ import annotations

import random
from collections import deque

PROBE_GAINS = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # one round each; Cardwell et al., §3
START_GAIN = 2.0
WINDOW_GAIN = 2.0
ROUNDS_REMEMBERED = 10
ROUND_TRIP_SECONDS = 10.0  # how long a smallest round trip is believed
DRAIN_SECONDS = 0.2  # how long the queue is let run empty to measure it again
FULL_ROUNDS = 3  # the start ends after so many rounds without a quarter more
SLOWEST = 16e3  # bytes/s; a path that is worse is as good as dead
SMALLEST_WINDOW = 16 * 1472
SHORTEST_ROUND = 5e-3  # s; a host's scheduling is noise below it
HEAVY_LOSS = 0.2  # of a round's bytes: loss that no link should have
QUEUED_LOSS = 0.02  # with a queue of half a round trip: loss that we make (BBR v2's threshold)
BACK_OFF = 0.85


class RateControl:
    """Rate and window of one path. Told of every feedback; asked before every burst.

    Args:
        first_rate: bytes/s to start from.
        most: bytes/s never to exceed, for links whose share is set by hand.
        seed: of the phase flows probe in, so that they do not all probe at once.
    """

    def __init__(
        self, first_rate: float = 2.5e6, most: float = float("inf"), seed: int = 0
    ) -> None:
        self._most = most
        self._chance = random.Random(seed)
        self._bandwidths: deque[tuple[int, float]] = deque()  # (round, bytes/s), falling
        self._bandwidth = first_rate
        self._round, self._round_end = 0, 0.0
        self._full, self._full_rounds = 0.0, 0
        self._phase = "start"
        self._gain_index = 0
        self.round_trip = 0.0  # smoothed, s; 0 until measured
        self._shortest, self._shortest_at = float("inf"), 0.0
        self._drain_end = 0.0
        self._sample_start: tuple[float, int] | None = None
        self._round_arrived = self._round_lost = 0
        self._came = False  # whether anything did in this round
        self._was_idle = False  # at some time of this sample

    @property
    def rate(self) -> float:
        """Bytes/s to pace at."""
        gain = {"start": START_GAIN, "empty": 1 / START_GAIN, "drain": 1.0}.get(
            self._phase, PROBE_GAINS[self._gain_index]
        )
        return min(self._most, max(SLOWEST, gain * self._bandwidth))

    @property
    def window(self) -> float:
        """Bytes that may be in flight."""
        if self.round_trip == 0:
            return 64 * 1472
        product = self._bandwidth * max(self._shortest, SHORTEST_ROUND)
        gain = {"start": 1.5 * WINDOW_GAIN, "drain": 0.5}.get(self._phase, WINDOW_GAIN)
        return max(SMALLEST_WINDOW, gain * product)

    @property
    def bandwidth(self) -> float:
        """Bytes/s the bottleneck is believed to carry."""
        return self._bandwidth

    def told(
        self, now: float, round_trip: float, arrived: int, peer_clock: float, lost: int,
        in_flight: int, idle: bool,
    ) -> None:  # fmt: skip
        """A feedback came.

        Args:
            now: this host's clock, s.
            round_trip: s.
            arrived: bytes the peer has had so far, in all.
            peer_clock: s, when it counted them; intervals by it are free of our own delays.
            lost: bytes newly found to be lost.
            in_flight: bytes.
            idle: the sender had nothing to send, no room at the peer, or no time: a low rate says
                nothing about the path.
        """
        self._measure_round_trip(now, round_trip)
        self._measure_bandwidth(arrived, peer_clock, idle)
        self._round_lost += lost
        if now >= self._round_end:
            self._end_round(now, idle)
        if self._phase == "empty" and in_flight <= self._bandwidth * self._shortest:
            self._phase = "probe"
            self._gain_index = self._chance.randrange(2, len(PROBE_GAINS))
        if self._phase == "drain" and now >= self._drain_end:
            self._phase = "probe"

    def _measure_round_trip(self, now: float, round_trip: float) -> None:
        old = self.round_trip
        self.round_trip = round_trip if old == 0 else 0.875 * old + 0.125 * round_trip
        if round_trip <= self._shortest:
            self._shortest, self._shortest_at = round_trip, now
        elif now - self._shortest_at > ROUND_TRIP_SECONDS and self._phase == "probe":
            self._shortest, self._shortest_at = round_trip, now
            self._phase = "drain"
            self._drain_end = now + max(DRAIN_SECONDS, self.round_trip)

    def _measure_bandwidth(self, arrived: int, peer_clock: float, idle: bool) -> None:
        if self._sample_start is None:
            self._sample_start = peer_clock, arrived
            return
        self._was_idle = self._was_idle or idle
        seconds = peer_clock - self._sample_start[0]
        if seconds < max(SHORTEST_ROUND, min(self.round_trip, 0.1)):
            return
        came = arrived - self._sample_start[1]
        if not came:
            return  # the peer or the link pauses; the next sample is over that time too
        self._came = True
        self._sample_start = peer_clock, arrived
        self._round_arrived += came
        sample = came / seconds
        idle, self._was_idle = self._was_idle, False
        if idle and sample < self._bandwidth:
            return
        while self._bandwidths and self._bandwidths[-1][1] <= sample:
            self._bandwidths.pop()
        self._bandwidths.append((self._round, sample))
        self._choose()

    def _choose(self) -> None:
        while self._bandwidths and self._bandwidths[0][0] < self._round - ROUNDS_REMEMBERED:
            self._bandwidths.popleft()
        if self._bandwidths:
            self._bandwidth = max(self._bandwidths[0][1], SLOWEST)

    def _end_round(self, now: float, idle: bool) -> None:
        """Rounds are of deliveries: a pause must not push the last rates out of memory."""
        self._round_end = now + max(self.round_trip, SHORTEST_ROUND)
        came, self._came = self._came, False
        if not idle and came:
            self._round += 1
        self._choose()
        self._back_off()
        if not came:
            return
        if self._phase == "start" and not idle:
            if self._bandwidth >= 1.25 * self._full:
                self._full, self._full_rounds = self._bandwidth, 0
            else:
                self._full_rounds += 1
                if self._full_rounds >= FULL_ROUNDS:
                    self._phase = "empty"
        elif self._phase == "probe":
            self._gain_index = (self._gain_index + 1) % len(PROBE_GAINS)

    def _back_off(self) -> None:
        """Once a round: less, if the loss is our own doing."""
        total = self._round_arrived + self._round_lost
        share = self._round_lost / total if total > 10 * 1472 else 0.0
        if total > 10 * 1472:
            self._round_arrived = self._round_lost = 0
        queued = self.round_trip > 1.5 * self._shortest + SHORTEST_ROUND
        if share > HEAVY_LOSS or (share > QUEUED_LOSS and queued):
            self._bandwidth *= BACK_OFF
            self._bandwidths = deque([(self._round, self._bandwidth)])
            if self._phase == "start":
                self._phase = "empty"
