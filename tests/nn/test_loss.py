"""Chunked cross entropy is plain cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pluribus.nn.loss import linear_cross_entropy


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_equals_plain_cross_entropy_with_gradients(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(50, (20,), generator=generator)
    targets[[3, 19]] = -100

    plain = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum", ignore_index=-100)
    expected = torch.autograd.grad(plain / 18, (hidden, weight))
    chunked = linear_cross_entropy(hidden, weight, targets, chunk_tokens)
    actual = torch.autograd.grad(chunked / 18, (hidden, weight))

    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(actual, expected)
    assert not actual[0][3].any()


def test_16_bit_inputs_give_an_fp32_loss_and_16_bit_gradients() -> None:
    hidden = torch.randn(40, 16).bfloat16().requires_grad_()
    weight = torch.randn(50, 16).bfloat16().requires_grad_()
    targets = torch.randint(50, (40,))
    loss = linear_cross_entropy(hidden, weight, targets, 8)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    exact = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    torch.testing.assert_close(loss, exact)


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight = torch.randn(9, 16), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (9,))
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, targets).detach())
