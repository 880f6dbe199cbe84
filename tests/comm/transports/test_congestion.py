"""Congestion control: what suits a link."""

from __future__ import annotations

import pytest

from pluribus.comm.transports import congestion

MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("latency_s", "mbit", "loss", "expected"),
    [
        (3e-4, 100, 0.0, "cubic"),
        (3e-4, 100, 0.2, "bbr"),  # loses so much that it does not grow again in time
        (20e-3, 100, 0.0, "bbr"),  # a probe is too short to exclude what would be too much here
        (3e-4, 10_000, 0.0, "bbr"),
        (20e-3, 5, 0.0, "cubic"),
    ],
)
def test_short_slow_clean_links_go_by_loss(
    latency_s: float, mbit: float, loss: float, expected: str
) -> None:
    assert congestion.suitable(latency_s, mbit * MBIT, loss) == expected
