"""Both halves of a UDP path as one machine: datagrams in, datagrams out, and when to ask again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pluribus.comm.transports import datagram
from pluribus.comm.transports.datagram import HEAD_BYTES, Feedback
from pluribus.comm.transports.incoming import Incoming
from pluribus.comm.transports.outgoing import Outgoing
from pluribus.comm.transports.rate import RateControl

KEEP_ALIVE = 25e-3  # s between signs of life; a dead peer's host answers them with a refusal
MOST_BURST = 60_000  # bytes handed to the kernel at once
BURST_SECONDS = 2e-3  # of sending: long bursts fill small queues


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOptions:
    """Settings of the UDP transport; those of both ends must agree.

    Attributes:
        ring_bytes: the most that may be on the way, and wait to be read, per direction.
        parity_every: datagrams that share one XOR datagram, which repairs any one of them
            without a round trip; 0: none.
        lossy: share of each DATA frame's payload that may be lost: it reads as zeros and is
            reported by `UdpPath.missing`. 0: everything arrives.
        most_bytes_per_s: never send faster.
        largest_datagram: IP payload; paths whose MTU is smaller use less.
        silence_seconds: a peer that is not heard for so long is gone.
    """

    ring_bytes: int = 16 << 20
    parity_every: int = 0
    lossy: float = 0.0
    most_bytes_per_s: float = float("inf")
    largest_datagram: int = 8972
    silence_seconds: float = 5.0


class Flow:
    """No sockets and no clock of its own.

    Args:
        keys: of what is sent and of what is heard.
        piece: payload bytes of a datagram.
    """

    def __init__(
        self, options: FlowOptions, keys: tuple[bytes, bytes], epoch: int, piece: int, seed: int = 0
    ) -> None:
        self._key, self._epoch = keys[0], epoch
        self._expected = datagram.head(keys[1], 0, epoch, 0)
        self.piece = piece
        rate = RateControl(most=options.most_bytes_per_s, seed=seed)
        guard = options.parity_every * piece
        self.outgoing = Outgoing(options.ring_bytes, piece, rate, options.parity_every)
        self.incoming = Incoming(options.ring_bytes, piece, options.lossy, guard)
        self.heard_at: float | None = None
        self.ended = False  # the peer said goodbye
        self.damaged = self.foreign = self.repeated = 0
        self._echo = 0
        per_burst = MOST_BURST // (HEAD_BYTES + piece)
        self._most = max(1, per_burst) * piece
        self._out = np.empty(max(1, per_burst) * (HEAD_BYTES + piece), np.uint8)

    @property
    def round_trip(self) -> float:
        return self.outgoing.rate.round_trip

    def heard(self, batch: memoryview, stride: int, now: float) -> None:
        """Datagrams came, each ``stride`` bytes long but the last."""
        incoming = self.incoming
        low, high = incoming.mark, incoming.limit
        found = datagram.take(batch, stride, self._expected, incoming.ring, low, high)
        pieces, data = [], False
        for kind, position, size, start in found:
            if kind == datagram.DAMAGED:
                self.damaged += 1
                continue
            if kind == datagram.FOREIGN:
                self.foreign += 1
                continue
            self.heard_at = now
            payload = batch[start : start + size]
            if kind == datagram.DATA:
                self._echo = datagram.clock_of(batch[start - HEAD_BYTES : start])
                data = True
                if low <= position and position + size <= high:
                    pieces.append((position, position + size))
                else:
                    self.repeated += size
            elif kind == datagram.FEEDBACK:
                self._echo = datagram.clock_of(batch[start - HEAD_BYTES : start])
                feedback = datagram.unpack_feedback(payload)
                if feedback is not None:
                    self._told(feedback, now)
            elif kind == datagram.PARITY and size > 4:
                length = int.from_bytes(payload[:4], "little")
                parity = np.frombuffer(payload[4:], np.uint8).copy()  # it may have to wait
                incoming.took_parity(position, position + length, parity, now)
            elif kind == datagram.BYE:
                self.ended = True
        if data:
            incoming.took(pieces, now)

    def _told(self, feedback: Feedback, now: float) -> None:
        sent_at = feedback.echo
        round_trip = self.round_trip or 0.1
        if sent_at:  # 0: it has not heard us yet
            micros = (_micros(now) - sent_at - feedback.held) % (1 << 32)
            if micros < 1 << 31:
                round_trip = max(micros, 1) / 1e6
        self.outgoing.told(feedback, now, round_trip)

    def speak(self, now: float) -> tuple[memoryview, int] | None:
        """Datagrams to send now, and their length (of all but the last); None: nothing yet."""
        incoming, outgoing = self.incoming, self.outgoing
        incoming.give_up(now, self.round_trip)
        held = now - self.heard_at if self.heard_at is not None else 0.0
        feedback = incoming.feedback(now, self.round_trip, self._echo, held, KEEP_ALIVE)
        if feedback is not None:
            header = self._head(datagram.FEEDBACK, now)
            made = datagram.single(header, 0, datagram.pack_feedback(feedback))
            return memoryview(made), len(made)
        pieces = int(outgoing.rate.rate * BURST_SECONDS) // self.piece
        burst = outgoing.next_burst(now, min(self._most, max(pieces, 2) * self.piece))
        if burst is None:
            return None
        size = burst.end - burst.start
        if burst.parity:
            header = self._head(datagram.PARITY, now)
            payload = size.to_bytes(4, "little") + outgoing.parity()
            made = datagram.single(header, burst.start, payload)
            return memoryview(made), len(made)
        header = self._head(datagram.DATA, now)
        written = datagram.cut(self._out, header, outgoing.ring, burst.start, size, self.piece)
        return memoryview(self._out)[:written], HEAD_BYTES + self.piece

    def goodbye(self, now: float) -> bytes:
        return datagram.single(self._head(datagram.BYE, now), 0, b"")

    def wait(self, now: float) -> float:
        """Seconds until `speak` may have something, if nothing is heard or written before."""
        seconds = self.incoming.wait(now, KEEP_ALIVE)
        sending = self.outgoing.wait(now)
        return seconds if sending is None else min(seconds, sending)

    def _head(self, kind: int, now: float) -> bytes:
        return datagram.head(self._key, kind, self._epoch, _micros(now))


def _micros(now: float) -> int:
    """Never 0, which stands for nothing heard yet."""
    return (int(now * 1e6) & 0xFFFFFFFF) or 1
