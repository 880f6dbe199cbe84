"""Initial weights that depend on the seed and each parameter's name alone.

Any split into stages, on any chips, therefore starts from the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def initial_value(name: str, shape: Iterable[int], *, std: float, seed: int) -> Tensor:
    """The initial fp32 value of one parameter.

    Matrices are normal(0, std), norm weights one, biases zero.

    Args:
        name: its Hugging Face name in the full model.
        std: `DecoderConfig.initializer_range`.

    Notes:
        Drawn with NumPy on the CPU: torch's generators give other numbers on each kind of chip,
        and its CPU normals depend on the instruction set.
    """
    shape = tuple(shape)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return torch.from_numpy(values)


@torch.no_grad()
def initialise(module: torch.nn.Module, *, std: float, seed: int) -> None:
    """Fills every parameter of a module whose parameter names are those of the full model."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(name, parameter.shape, std=std, seed=seed))
