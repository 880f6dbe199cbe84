"""Two flows and a bad link between them, by a clock that is only a number."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import numpy as np

from pluribus.comm.transports.datagram import read_ring
from pluribus.comm.transports.flow import Flow, FlowOptions

PIECE = 1000


@dataclass
class Link:
    """One direction: a rate, a queue that overflows, a delay, and accidents."""

    bytes_per_s: float = 12.5e6
    delay: float = 0.02
    queue_bytes: int = 250_000
    loss: float = 0.0
    damage: float = 0.0
    twice: float = 0.0
    jitter: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    free_at: float = 0.0
    dropped: int = 0

    def carry(self, data: bytes, now: float) -> list[tuple[float, bytes]]:
        """When, and as what, the datagram arrives; none, one or two times."""
        waiting = max(0.0, self.free_at - now) * self.bytes_per_s
        if self.chance.random() < self.loss or waiting > self.queue_bytes:
            self.dropped += 1
            return []
        self.free_at = max(now, self.free_at) + len(data) / self.bytes_per_s
        if self.chance.random() < self.damage:
            spoilt = bytearray(data)
            spoilt[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
            data = bytes(spoilt)
        times = 2 if self.chance.random() < self.twice else 1
        return [
            (self.free_at + self.delay + self.chance.random() * self.jitter, data)
            for _ in range(times)
        ]


class Wire:
    """Flow 0 sends a stream to flow 1; flow 1 reads it as it comes."""

    def __init__(self, options: FlowOptions, there: Link, back: Link | None = None) -> None:
        keys = b"k" * 8, b"l" * 8
        self.flows = [
            Flow(options, keys, 7, PIECE, seed=1), Flow(options, keys[::-1], 7, PIECE, seed=2)
        ]  # fmt: skip
        self.links = [there, back or Link(delay=there.delay)]
        self.now = 0.0
        self.got = bytearray()
        self._events: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._batch = bytearray(1 << 16)

    def send(self, data: bytes, seconds: float = 60.0) -> float:
        """Carries all of it across; returns how long that took."""
        begin, flat = self.now, np.frombuffer(data, np.uint8)
        want = len(self.got) + len(data)
        while len(self.got) < want:
            assert self.now - begin < seconds, f"{len(self.got)} of {want} bytes in {seconds} s"
            flat = flat[self.flows[0].outgoing.write(flat) :]
            self.step()
        return self.now - begin

    def step(self) -> None:
        """Goes on to the next moment at which something happens."""
        next_times = [self.now + 0.05]
        for end, flow in enumerate(self.flows):
            while (made := flow.speak(self.now)) is not None:
                data, stride = made
                for start in range(0, len(data), stride):
                    one = bytes(data[start : start + stride])
                    for when, arrived in self.links[end].carry(one, self.now):
                        self._count += 1
                        heapq.heappush(self._events, (when, self._count, 1 - end, arrived))
            next_times.append(self.now + max(flow.wait(self.now), 1e-4))
        if self._events:
            next_times.append(max(self.now, self._events[0][0]))
        self.now = min(next_times)
        while self._events and self._events[0][0] <= self.now:
            _, _, end, data = heapq.heappop(self._events)
            self._batch[: len(data)] = data  # into the same memory as all before
            self.flows[end].heard(memoryview(self._batch)[: len(data)], len(data), self.now)
        incoming = self.flows[1].incoming
        fresh = incoming.mark - incoming.consumed
        self.got += read_ring(incoming.ring, incoming.consumed, fresh).tobytes()
        incoming.consumed += fresh
