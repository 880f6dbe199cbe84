"""Residuals go through a checkpoint as if there had been none."""

from __future__ import annotations

import pytest
import torch

from pluribus.comm.codecs.int8 import Int8
from pluribus.comm.codecs.residuals import Residuals
from pluribus.core.errors import CheckpointError


def steps(residuals: Residuals, first: int, last: int) -> list[torch.Tensor]:
    codec, sent = Int8(), []
    for step in range(first, last):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(step))
        out = torch.empty(codec.num_bytes(1000), dtype=torch.uint8)
        codec.encode(x, out, residuals.of("bucket 0", 1000))
        sent.append(out)
    return sent


def test_a_run_that_stops_and_goes_on_sends_the_same_bytes() -> None:
    whole = steps(Residuals(), 0, 6)
    before, after = Residuals(), Residuals()
    first = steps(before, 0, 3)
    state = before.state_dict()
    steps(before, 3, 6)  # the saved copy must not follow
    after.load_state_dict(state)
    assert all(map(torch.equal, whole, first + steps(after, 3, 6)))


def test_loaded_but_not_yet_used_is_saved_again() -> None:
    residuals = Residuals()
    residuals.load_state_dict({"a": torch.ones(3)})
    assert torch.equal(residuals.state_dict()["a"], torch.ones(3))


def test_another_size_is_refused() -> None:
    residuals = Residuals()
    residuals.load_state_dict({"a": torch.ones(3)})
    with pytest.raises(CheckpointError, match="has 3 elements, the tensor 4"):
        residuals.of("a", 4)


def test_forgetting_starts_from_zero() -> None:
    residuals = Residuals()
    residuals.of("a", 2).fill_(1.0)
    residuals.forget()
    assert torch.equal(residuals.of("a", 2), torch.zeros(2))


def test_what_is_dropped_starts_anew() -> None:
    residuals = Residuals()
    residuals.of("a", 3).fill_(1.0)
    residuals.drop("a")
    residuals.drop("never there")
    assert residuals.of("a", 4).tolist() == [0.0] * 4
