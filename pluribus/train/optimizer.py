"""AdamW with decoupled weight decay on matrices only, and a warm-up then cosine learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from pluribus.spec.job import TrainSpec

# The learning rate ends at this share of its peak (Hoffmann et al. 2022, arXiv 2203.15556 §3).
FINAL_SHARE = 0.1


def build_optimizer(module: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); vectors (norms, biases) are not decayed."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=1e-8,
        fused=True,
    )


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Of the step with this number, counted from 0: linear warm-up, then cosine decay."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    length = max(1, spec.num_steps - spec.warmup_steps)
    progress = min(1.0, (step - spec.warmup_steps) / length)
    share = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return spec.learning_rate * share


def clip_factor(norm: float, limit: float) -> float:
    """What gradients are multiplied with so that their global norm is at most ``limit``; a limit
    of zero never clips (Pascanu et al. 2013)."""
    if limit <= 0 or norm <= limit:
        return 1.0
    return limit / norm
