"""Rate control told of what a path did, by a clock that is only a number."""

from __future__ import annotations

from pluribus.comm.transports.rate import SLOWEST, RateControl

ROUND_TRIP = 0.02


def carry(rate: RateControl, now: float, arrived: int, bytes_per_s: float, rounds: int) -> int:
    """Rounds on a path of this rate; returns bytes arrived in all."""
    for number in range(rounds):
        arrived += round(bytes_per_s * ROUND_TRIP)
        at = now + (number + 1) * ROUND_TRIP
        rate.told(at, ROUND_TRIP, arrived, at, 0, 10_000, False)
    return arrived


def test_it_finds_the_rate_and_follows_it_down() -> None:
    rate = RateControl()
    arrived = carry(rate, 0.0, 0, 1e7, 30)
    assert 0.9e7 < rate.bandwidth < 1.1e7
    carry(rate, 30 * ROUND_TRIP, arrived, 2e6, 30)
    assert 1.9e6 < rate.bandwidth < 2.1e6


def test_rounds_without_a_delivery_change_nothing() -> None:
    """A peer that was not given its processor for a second still answers, late and often."""
    rate = RateControl()
    arrived = carry(rate, 0.0, 0, 1e7, 30)
    before = rate.bandwidth
    for number in range(200):
        now = 30 * ROUND_TRIP + number * ROUND_TRIP
        rate.told(now, ROUND_TRIP, arrived, now, 0, 10_000, False)
    assert rate.bandwidth == before > 100 * SLOWEST
    later = 230 * ROUND_TRIP
    carry(rate, later, arrived, 1e7, 20)
    assert rate.bandwidth > 0.9 * before


def test_what_came_while_there_was_little_to_send_says_nothing() -> None:
    rate = RateControl()
    arrived = carry(rate, 0.0, 0, 1e7, 30)
    before = rate.bandwidth
    for number in range(100):
        arrived += 1000
        now = (31 + number) * ROUND_TRIP
        rate.told(now, ROUND_TRIP, arrived, now, 0, 0, True)
    assert rate.bandwidth == before


def test_loss_with_a_queue_slows_it_down_and_loss_alone_does_not() -> None:
    for round_trip, slower in ((ROUND_TRIP, False), (3 * ROUND_TRIP, True)):
        rate = RateControl()
        arrived = carry(rate, 0.0, 0, 1e7, 30)
        before = rate.bandwidth
        for number in range(9):
            arrived += 200_000
            now = (31 + number) * ROUND_TRIP
            rate.told(now, round_trip, arrived, now, 10_000, 10_000, False)
        assert (rate.bandwidth < 0.9 * before) is slower
