from __future__ import annotations

import pytest

from pluribus.core.errors import ConfigError
from pluribus.core.units import GIB, format_bytes, format_count, format_seconds, parse_duration


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 * GIB, "3.00 GiB"),
     (1.5 * 2**40, "1.50 TiB"), (-2 * GIB, "-2.00 GiB")],
)  # fmt: skip
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 µs"), (12e-6, "12.0 µs"), (0.0123, "12.3 ms"), (4.56, "4.56 s"), (119.0, "119.00 s"),
     (150, "2 min"), (119 * 60, "119 min"), (200 * 60, "3 h 20 min"), (7199, "2 h 0 min"),
     (47.5 * 3600, "47 h 30 min"), (72 * 3600, "3.0 days")],
)  # fmt: skip
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7.24e9, "7.24 B"), (1200, "1.2 k"), (70_553_706_496, "70.6 B"), (15e12, "15 T"), (12, "12"),
     (0.25, "0.25"), (999, "999"), (999_600, "1 M"), (999_999_999, "1 B"), (999.7, "1 k")],
)  # fmt: skip
def test_counts(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30min", 1800), ("30 m", 1800), ("72h", 259200), ("3d", 259200),
     (" 1.5 h ", 5400), (".5h", 1800)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "72", "h", "3 weeks", "-1h", "1h30min", "1e3s", "nan s"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration") as caught:
        parse_duration(text)
    assert "72h" in caught.value.do
