"""Gradients as flat buffers, one per set of stages that hold the same layers.

Each micro-batch's loss is divided by the tokens of the whole global batch before backward, so a
plain sum over holders weights every stage by the tokens it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pluribus.comm.fabric import Fabric, Group
from pluribus.model.model import Model
from pluribus.predict.schedule import GradientGroup


def layer_of(name: str, model: Model) -> int:
    """Index of the layer in `Model.layers` a Hugging Face parameter name belongs to."""
    for index, layer in enumerate(model.layers):
        if any(name.startswith(f"{prefix}.") for prefix in layer.prefixes):
            return index
    raise AssertionError(f"no layer holds {name}")


@dataclass
class Bucket:
    """Gradients of some parameters in one buffer; each ``parameter.grad`` is a view of it.

    Attributes:
        group: whom to sum with; None when this stage alone holds the parameters.
        counts: whether this rank counts the bucket in the global gradient norm.
    """

    buffer: torch.Tensor
    group: Group | None
    counts: bool


class Gradients:
    """The gradient buffers of one stage.

    Args:
        module: the stage; its parameters get their gradients here.
        lane: (pipeline, stage) of this rank.
        groups: of the whole plan.
        fabric_groups: per gradient group its ranks' group, None where this rank is not in it.
    """

    def __init__(
        self,
        module: nn.Module,
        model: Model,
        lane: tuple[int, int],
        groups: Sequence[GradientGroup],
        fabric_groups: Sequence[Group],
    ) -> None:
        group_of_layer = {
            layer: g for g, group in enumerate(groups) if lane in group.holders
            for layer in group.layers
        }  # fmt: skip
        members: dict[int | None, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            members.setdefault(group_of_layer.get(layer_of(name, model)), []).append(parameter)
        self._buckets: dict[int | None, Bucket] = {}
        for g, parameters in members.items():
            size = sum(parameter.numel() for parameter in parameters)
            buffer = torch.zeros(size, dtype=torch.float32, device=parameters[0].device)
            start = 0
            for parameter in parameters:
                end = start + parameter.numel()
                parameter.grad = buffer[start:end].view_as(parameter)
                start = end
            counts = g is None or groups[g].holders[0] == lane
            self._buckets[g] = Bucket(buffer, None if g is None else fabric_groups[g], counts)

    def zero(self) -> None:
        """Clears every gradient in place."""
        for bucket in self._buckets.values():
            bucket.buffer.zero_()

    def reduce(self, group: int, fabric: Fabric) -> None:
        """Sums one group's gradients over its holders."""
        bucket = self._buckets[group]
        assert bucket.group is not None
        fabric.sum(bucket.buffer, bucket.group)

    def squared_norm(self) -> torch.Tensor:
        """This rank's part of the squared global norm, fp64; the parts of all ranks sum to it."""
        parts = [
            torch.linalg.vector_norm(bucket.buffer, dtype=torch.float64).square().cpu()
            for bucket in self._buckets.values()
            if bucket.counts
        ]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)

    def scale(self, factor: float) -> None:
        """Multiplies every gradient."""
        for bucket in self._buckets.values():
            bucket.buffer.mul_(factor)
