"""What a rank saves and restores: its layers' weights and Adam moments, by Hugging Face names.

The first pipeline holds every layer once, so its stages write the checkpoint, one part each.
Nothing in a checkpoint depends on the plan: any other plan can go on from it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pluribus.core.errors import CheckpointError
from pluribus.store.checkpoint import (
    MOMENTS,
    PartManifest,
    load_optimizer,
    load_tensors,
    write_part,
)


def save_part(
    folder: Path, part: int, num_parts: int, module: nn.Module, optimizer: torch.optim.Optimizer,
    skip: set[str],
) -> PartManifest:  # fmt: skip
    """Writes one stage's part of a checkpoint.

    Args:
        folder: the unfinished checkpoint's folder.
        skip: parameters another stage writes (the copy of a tied matrix).
    """
    model, moments = {}, {}
    for name, parameter in module.named_parameters():
        if name in skip:
            continue
        model[name] = parameter.detach().cpu().contiguous()
        state = optimizer.state.get(parameter)
        if state:
            for key in MOMENTS:
                moments[f"{name}.{key}"] = state[key].detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    return write_part(folder, part, num_parts, model, moments)


def restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Loads this stage's weights, and its moments when the checkpoint has made a step.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in load_tensors(folder, list(parameters)).items():
        _copy(parameters[name].data, tensor, name, folder)
    if step == 0:
        return
    moments = load_optimizer(folder, list(parameters))
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        # Fused AdamW keeps its step count beside the parameter.
        state["step"] = torch.tensor(float(step), device=parameter.device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter)
            _copy(state[key], moments[f"{name}.{key}"], f"{name}.{key}", folder)


def _copy(target: torch.Tensor, source: torch.Tensor, name: str, folder: Path) -> None:
    if target.shape != source.shape:
        raise CheckpointError(
            f"'{name}' is {tuple(source.shape)}, the model needs {tuple(target.shape)}",
            where=str(folder),
            do="Start from a checkpoint of the same config.json.",
        )
    target.copy_(source)
