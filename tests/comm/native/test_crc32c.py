"""crc32c: the published values, and the same from C and numpy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.comm.native.crc32c import crc32c, crc32c_numpy


@pytest.mark.parametrize("function", [crc32c, crc32c_numpy])
@pytest.mark.parametrize(
    ("data", "value"),  # RFC 3720, appendix B.4
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(function, data: bytes, value: int) -> None:
    assert function(data) == value


@given(st.integers(0, 5000), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_both_agree_and_continue(size: int, start: int, random) -> None:
    data = random.randbytes(size)
    cut = random.randint(0, size)
    whole = crc32c(data, start)
    assert crc32c_numpy(data, start) == whole
    assert crc32c(data[cut:], crc32c(data[:cut], start)) == whole
    assert crc32c_numpy(data[cut:], crc32c_numpy(data[:cut], start)) == whole


def test_views_are_read_where_they_lie() -> None:
    data = bytearray(range(200))
    assert crc32c(memoryview(data)[3:150]) == crc32c(bytes(data[3:150]))
