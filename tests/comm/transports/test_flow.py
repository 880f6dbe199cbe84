"""A UDP path's two halves over links that lose, damage, repeat and reorder."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pluribus.comm.transports import datagram, flow
from pluribus.comm.transports.base import DATA, HEADER_BYTES, Header, pack
from pluribus.comm.transports.datagram import Feedback
from pluribus.comm.transports.flow import FlowOptions
from pluribus.comm.transports.outgoing import Burst, Outgoing, xor_pieces
from pluribus.comm.transports.rate import RateControl
from tests.comm.transports.wire import PIECE, Link, Wire

RING = 1 << 19


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("parity_every", [0, 8])
@pytest.mark.parametrize(
    "accidents",
    [
        {},
        {"loss": 0.05},
        {"damage": 0.05},
        {"twice": 0.1, "jitter": 0.005},
        {"loss": 0.1, "damage": 0.02, "twice": 0.05, "jitter": 0.02},
    ],
    ids=str,
)
def test_the_stream_arrives_whole_and_in_order(accidents: dict, parity_every: int) -> None:
    there = Link(delay=0.01, **accidents)
    back = Link(delay=0.01, chance=random.Random(2), **accidents)
    wire = Wire(FlowOptions(ring_bytes=RING, parity_every=parity_every), there, back)
    sent = b""
    for seed, size in enumerate((1, PIECE, 300_001, 7, 700_000)):  # more than the ring holds
        data = content(size, seed)
        wire.send(data)
        sent += data
    assert bytes(wire.got) == sent
    assert wire.flows[1].foreign == 0
    if "damage" in accidents:
        assert wire.flows[1].damaged > 0


def test_a_dead_direction_of_feedback_stops_the_sender_at_its_window() -> None:
    wire = Wire(FlowOptions(ring_bytes=RING), Link(), Link(loss=1.0))
    with pytest.raises(AssertionError):
        wire.send(content(RING), seconds=1.0)
    assert wire.flows[0].outgoing.in_flight <= wire.flows[0].outgoing.rate.window


def test_a_clean_link_sends_nothing_twice() -> None:
    wire = Wire(FlowOptions(ring_bytes=1 << 21), Link(queue_bytes=1 << 20))
    wire.send(content(1_000_000))
    assert wire.flows[0].outgoing.resent == 0


@pytest.mark.parametrize(("loss", "share"), [(0.0, 0.8), (0.01, 0.7), (0.05, 0.55)])
def test_random_loss_does_not_slow_it_down(loss: float, share: float) -> None:
    link = Link(loss=loss)
    wire = Wire(FlowOptions(ring_bytes=1 << 22), link)
    wire.send(content(2_000_000))  # finds the rate
    seconds = wire.send(content(4_000_000))
    assert 4_000_000 / seconds > share * link.bytes_per_s


def test_parity_repairs_without_asking() -> None:
    link = Link(loss=0.02)
    wire = Wire(FlowOptions(ring_bytes=RING, parity_every=8), link)
    wire.send(content(600_000))
    assert bytes(wire.got) == content(600_000)
    assert wire.flows[1].incoming.rebuilt >= link.dropped * PIECE // 2


def test_bounded_loss_fills_with_zeros_and_says_where() -> None:
    wire = Wire(FlowOptions(ring_bytes=1 << 20, lossy=0.05), Link(loss=0.02))
    payload = content(400_000)
    header = Header(DATA, 7, 1, 0, len(payload))
    wire.send(pack(header, checked=False) + payload)
    incoming = wire.flows[1].incoming
    got = bytearray(wire.got[HEADER_BYTES:])
    missing = incoming.missing[0]
    assert missing
    assert sum(lost.size for lost in missing) == incoming.filled <= 0.05 * len(payload)
    for lost in missing:
        assert not any(got[lost.offset : lost.offset + lost.size])
        got[lost.offset : lost.offset + lost.size] = payload[lost.offset : lost.offset + lost.size]
    assert bytes(got) == payload  # nothing is wrong but what was reported


def test_loss_beyond_the_bound_is_repaired() -> None:
    wire = Wire(FlowOptions(ring_bytes=1 << 20, lossy=0.01), Link(loss=0.1))
    payload = content(400_000)
    wire.send(pack(Header(DATA, 7, 1, 0, len(payload)), checked=False) + payload)
    assert 0 < wire.flows[1].incoming.filled <= 0.01 * len(payload)


def test_another_key_or_epoch_is_not_heard() -> None:
    wire = Wire(FlowOptions(ring_bytes=RING), Link())
    receiver = wire.flows[1]
    for key, epoch in ((b"x" * 8, 7), (b"k" * 8, 8)):
        made = datagram.single(datagram.head(key, datagram.DATA, epoch, 5), 0, b"lies")
        receiver.heard(memoryview(made), len(made), 0.0)
    assert receiver.foreign == 2
    assert receiver.incoming.mark == 0
    assert receiver.heard_at is None


def test_c_and_python_read_and_write_the_same_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.frombuffer(content(5000), np.uint8).copy()
    header = datagram.head(b"k" * 8, datagram.DATA, 7, 99)
    made, seen = [], []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(datagram, "kernel", lambda: None)
        out = np.zeros(9000, np.uint8)
        size = datagram.cut(out, header, ring, 3500, 3456, 1000)  # around the ring's end
        made.append(out[:size].tobytes())
        spoilt = bytearray(made[-1])
        spoilt[1040] ^= 1
        other = np.zeros(5000, np.uint8)
        found = datagram.take(memoryview(spoilt), 1032, header, other, 3500, 6000)
        seen.append((found, other.tobytes()))
    assert made[0] == made[1]
    assert seen[0] == seen[1]
    assert [one.kind for one in seen[0][0]] == [1, datagram.DAMAGED, 1, 1]


def test_the_head_fits_a_feedback_with_all_holes_into_one_datagram() -> None:
    assert flow.HEAD_BYTES + 56 + 12 * datagram.MOST_HOLES <= 1472


def test_parity_is_of_what_was_sent_though_it_is_overwritten_since() -> None:
    """The peer has half a span, and its room in the ring is used again before the rest leaves."""
    piece, ring = 10, 40
    outgoing = Outgoing(ring, piece, RateControl(), parity_every=4)

    def told(mark: int, limit: int) -> None:
        outgoing.told(Feedback(mark, mark, limit, mark, 0, 0.0, 0, 0, ()), 1.0, 0.01)

    stream = np.frombuffer(content(80), np.uint8)
    told(0, 20)
    written = outgoing.write(stream)
    first = outgoing.next_burst(1.0, 25)
    assert first == Burst(0, 20)
    told(20, 80)
    outgoing.write(stream[written:])
    assert outgoing.next_burst(10.0, 15) == Burst(20, 35)
    assert outgoing.next_burst(20.0, 25) == Burst(35, 40)
    assert outgoing.next_burst(30.0, 25) == Burst(0, 40, parity=True)
    assert outgoing.parity() == xor_pieces(stream[:40], piece).tobytes()
