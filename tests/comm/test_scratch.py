"""Scratch memory comes back, and not too much of it is kept."""

from __future__ import annotations

from pluribus.comm.scratch import Scratch


def test_a_buffer_of_the_same_size_is_used_again_once() -> None:
    scratch = Scratch()
    one, two = scratch.take(100), scratch.take(100)
    assert one.data_ptr() != two.data_ptr()
    scratch.give_back(one)
    scratch.give_back(two)
    assert scratch.take(99) is not one
    assert scratch.take(100) is one
    assert scratch.take(100) is two
    assert scratch.take(100) is not one


def test_the_oldest_goes_beyond_the_limit() -> None:
    scratch = Scratch(kept_bytes=250)
    buffers = [scratch.take(100) for _ in range(3)]
    for buffer in buffers:
        scratch.give_back(buffer)
    assert scratch.take(100) is buffers[1]
    assert scratch.take(100) is buffers[2]
    assert all(scratch.take(100) is not buffer for buffer in buffers)


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    scratch = Scratch(kept_bytes=10)
    buffer = scratch.take(11)
    scratch.give_back(buffer)
    assert scratch.take(11) is not buffer
