"""Every codec: sizes, error, what waits in the residual, and numbers that are no numbers."""

from __future__ import annotations

import pytest
import torch

from pluribus.comm.codecs import int4, int8
from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.int4 import Int4
from pluribus.comm.codecs.int8 import Int8
from pluribus.comm.codecs.power_sgd import PowerSgd
from pluribus.comm.codecs.registry import CODECS, codec
from pluribus.comm.codecs.sparse import Sparse
from pluribus.comm.codecs.top_k import TopK
from pluribus.comm.native.build import kernel
from pluribus.core.errors import ConfigError

SIZES = (1, 2, 7, 255, 256, 257, 511, 1000, 4096, 10_007)
NAMES = sorted(CODECS)


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def coded(codec: Codec, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full((codec.num_bytes(x.numel()),), 0xAB, dtype=torch.uint8)
    codec.encode(x, out, residual)
    return out


def decoded(codec: Codec, out: torch.Tensor, n: int) -> torch.Tensor:
    y = torch.full((n,), torch.nan)
    codec.decode(out, y)
    return y


def through(codec: Codec, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    return decoded(codec, coded(codec, x, residual), x.numel())


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).norm() / x.norm())


@pytest.mark.parametrize(
    ("name", "bound"),
    # facts of the formats: half a step of each, for Gaussian numbers
    [("none", 0.0), ("bf16", 1.8e-3), ("int8", 7.5e-3), ("int4", 0.13)],
)
def test_one_step_loses_as_much_as_the_format_must(name: str, bound: float) -> None:
    x = normal(1 << 18)
    assert bound * 0.8 <= error(x, through(codec(name), x)) <= bound


@pytest.mark.parametrize(
    ("name", "once", "bound"), [("int8", 7e-3, 4.5e-4), ("int4", 0.126, 1.2e-2)]
)
def test_twenty_steps_lose_no_more_than_one(name: str, once: float, bound: float) -> None:
    """The sum telescopes: what is missing after T steps is the last residual alone."""
    chosen, total, seen = codec(name), torch.zeros(1 << 16), torch.zeros(1 << 16)
    residual = torch.zeros(1 << 16)
    x = normal(1 << 16)
    for _ in range(20):
        total += x
        seen += through(chosen, x, residual)
    assert error(total, seen) <= bound < once / 8


@pytest.mark.parametrize("name", NAMES)
def test_sum_of_what_was_sent_and_what_waits_is_what_was_given(name: str) -> None:
    chosen, n = codec(name), 3001
    given = torch.zeros(n, dtype=torch.float64)
    sent = torch.zeros(n, dtype=torch.float64)
    residual = torch.zeros(n)
    for step in range(8):
        x = normal(n, step)
        given += x
        sent += through(chosen, x, residual)
    torch.testing.assert_close(sent + residual, given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", SIZES)
def test_every_size_is_exact_in_bytes_and_leaves_the_input(name: str, n: int) -> None:
    chosen, x = codec(name), normal(n)
    before = x.clone()
    guard = torch.full((chosen.num_bytes(n) + 64,), 0xAB, dtype=torch.uint8)
    chosen.encode(x, guard[:-64])
    assert torch.equal(x, before)
    assert (guard[-64:] == 0xAB).all()
    out = torch.full((n + 16,), 5.0)
    chosen.decode(guard[:-64], out[:n])
    assert (out[n:] == 5.0).all()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", NAMES)
def test_coded_bytes_may_lie_at_an_odd_address(name: str) -> None:
    chosen, n = codec(name), 777
    x = normal(n)
    straight = coded(chosen, x)
    shifted = torch.zeros(len(straight) + 1, dtype=torch.uint8)[1:]
    chosen.encode(x, shifted)
    assert torch.equal(straight, shifted)
    assert torch.equal(decoded(chosen, straight, n), decoded(chosen, shifted, n))


@pytest.mark.parametrize("name", NAMES)
def test_adding_is_decoding_and_adding(name: str) -> None:
    chosen, n = codec(name), 1001
    out = coded(chosen, normal(n))
    summed = normal(n, 1)
    expected = summed + decoded(chosen, out, n)
    chosen.decode(out, summed, add=True)
    assert torch.equal(summed, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", SIZES)
def test_a_sum_is_one_decoded_and_the_other_added(name: str, n: int) -> None:
    chosen, sums = codec(name), torch.full((n + 8,), torch.nan)
    one, other = coded(chosen, normal(n)), coded(chosen, normal(n, 1) * 1e-3)
    expected = decoded(chosen, one, n)
    chosen.decode(other, expected, add=True)
    chosen.decode_sum(one, other, sums[:n])
    assert same_bits(sums[:n], expected)
    assert sums[n:].isnan().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_arrives_as_not_finite_and_does_not_stay(name: str, bad: float) -> None:
    chosen, n = codec(name), 1000
    x = normal(n)
    x[300] = bad
    residual = normal(n, 2) * 1e-3
    y = through(chosen, x, residual)
    assert not torch.isfinite(y[300])
    assert torch.isfinite(residual).all()
    assert torch.isfinite(through(chosen, normal(n, 3), residual)).all()
    if chosen.block > 1:  # only the block it is in is lost
        assert torch.isfinite(y[512:]).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    assert torch.equal(through(codec(name), torch.zeros(600)), torch.zeros(600))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_numbers_too_small_to_scale_wait(name: str) -> None:
    residual = torch.zeros(300)
    x = normal(300) * 1e-35
    assert torch.equal(through(codec(name), x, residual), torch.zeros(300))
    assert torch.equal(residual, x)


def awkward() -> list[torch.Tensor]:
    cases = []
    for n in SIZES:
        for factor in (1.0, 1e-30, 1e-38, 1e37, 0.0):
            cases.append(normal(n, n) * factor)
        cases.append(normal(n, n) ** 5)
        for bad in (torch.nan, torch.inf):
            cases.append(normal(n, n))
            cases[-1][n // 2] = bad
    ties = torch.arange(-127, 128) / 2  # with the largest 127: exact halves to round
    cases.append(torch.cat([ties, torch.tensor([127.0])]))
    return cases


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    both_nan = a.isnan() & b.isnan()
    return torch.equal(
        a.view(torch.int32).masked_fill(both_nan, 0), b.view(torch.int32).masked_fill(both_nan, 0)
    )


@pytest.mark.skipif(kernel() is None, reason="no C compiler")
@pytest.mark.parametrize("seed", [None, 0, 12345, 2**64 - 3])
def test_c_and_torch_give_the_same_bits(seed: int | None) -> None:
    chosen: Codec = Int8() if seed is None else Int4(seed)
    module, extra = (int8, ()) if seed is None else (int4, (seed,))
    for x in awkward():
        n = x.numel()
        for residual in (None, normal(n, 9) * 1e-3):
            left = None if residual is None else residual.clone()
            by_c, by_torch = coded(chosen, x, residual), torch.zeros(chosen.num_bytes(n)).byte()
            module.encode_torch(x, by_torch, left, *extra)
            assert torch.equal(by_c, by_torch)
            assert residual is None or same_bits(residual, left)
            for add in (False, True):
                y, z = normal(n, 4), normal(n, 4)
                chosen.decode(by_c, y, add=add)
                module.decode_torch(by_torch, z, add, *extra)
                assert same_bits(y, z)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 2048, 5000, 10_007])
def test_sparse_says_only_what_is_there(n: int) -> None:
    chosen, x = Sparse(), torch.zeros(n)
    assert chosen.length(coded(chosen, x), n) == -(-n // 2048)
    x[-1], x[n // 2] = 3.0, torch.nan
    said = coded(chosen, x)
    length = chosen.length(said, n)
    blocks = {(n - 1) // 256, n // 2 // 256}
    assert length == -(-n // 2048) + 4 * sum(min(256, n - 256 * block) for block in blocks)
    said[length:] = 0xFF  # what lies behind says nothing
    assert same_bits(decoded(chosen, said, n), x)


def test_another_seed_is_another_rotation() -> None:
    x = normal(512)
    assert not torch.equal(coded(Int4(1), x), coded(Int4(2), x))


def test_rotation_saves_the_small_beside_the_large() -> None:
    """One value 100 times the others: unrotated 4 bits would round all others to zero."""
    x = normal(256)
    x[17] = 100.0
    y = through(Int4(), x)
    small = torch.arange(256) != 17
    assert float((y[small] * x[small]).sum() / x[small].square().sum()) == pytest.approx(1, abs=0.9)
    assert error(x, y) < 0.13


def test_top_k_sends_the_largest_and_keeps_the_rest() -> None:
    x = normal(1000)
    residual = torch.zeros(1000)
    y = through(TopK(share=0.01), x, residual)
    sent = torch.topk(x.abs(), 10).indices
    assert set(y.nonzero().view(-1).tolist()) == set(sent.tolist())
    assert torch.equal(y + residual, x)


def test_power_sgd_is_exact_on_what_has_low_rank() -> None:
    p, q = normal(64 * 3).view(64, 3), normal(64 * 3, 1).view(64, 3)
    x = (p @ q.T).view(-1)
    assert error(x, through(PowerSgd(rank=4), x)) < 1e-5
    assert error(x, through(PowerSgd(rank=1), x)) > 0.1


def test_an_unknown_codec_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        codec("int9")
