"""Cross entropy of the vocabulary projection, without ever holding all logits.

Logits of 8,192 tokens over 128 k words are 4 GiB in fp32, more than all else a small stage
keeps. Here forward makes them a chunk of tokens at a time and turns each chunk into its part of
the gradients at once, as Liger Kernel does (Hsu et al. 2024, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = 1024
IGNORE_INDEX = -100


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """The sum over tokens of ``cross_entropy(hidden @ weight.T, targets)``, in nats.

    Args:
        hidden: [tokens, hidden].
        weight: [vocabulary, hidden].
        targets: [tokens] of int64; `IGNORE_INDEX` marks tokens that do not count.
        chunk_tokens: tokens whose logits exist at one time.

    Returns:
        An fp32 scalar. Its gradients are computed in forward and scaled in backward, in place, so
        backward runs once.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Many 16-bit partial sums would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            projected = F.linear(hidden[rows], weight)
            counted = (targets[rows] != IGNORE_INDEX).unsqueeze(1)
            picked = targets[rows].unsqueeze(1).where(counted, 0)
            log_p = torch.log_softmax(projected, dim=-1, dtype=torch.float32)
            total -= log_p.gather(1, picked).where(counted, 0).sum()
            if not (wants_hidden or wants_weight):
                continue
            # d loss / d logits = softmax - one-hot(target)
            grad = log_p.exp_().scatter_add_(1, picked, -torch.ones_like(log_p[:, :1]))
            grad = grad.mul_(counted).to(projected.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[rows]
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if g is None else g.mul_(grad_loss) for g in ctx.saved_tensors]
        return (*grads, None, None)
