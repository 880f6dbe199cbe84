"""What codecs have not said yet: part of a checkpoint, since it is part of the gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pluribus.core.errors import CheckpointError


class Residuals:
    """One flat fp32 tensor per hop and tensor, by a key that is the same in every run.

    A rank that starts from a checkpoint without them loses at most one step's rounding.

    Attributes:
        loaded: whether they go on from a checkpoint.
    """

    def __init__(self) -> None:
        self.loaded = False
        self._of: dict[str, torch.Tensor] = {}
        self._loaded: dict[str, torch.Tensor] = {}

    def of(self, key: str, num_elements: int) -> torch.Tensor:
        """The residual float32 [n] to hand to `Codec.encode`; zeros the first time.

        Raises:
            CheckpointError: a loaded one has another size.
        """
        if key not in self._of:
            kept = self._loaded.pop(key, None)
            self._of[key] = torch.zeros(num_elements) if kept is None else kept
        found = self._of[key]
        if found.numel() != num_elements:
            raise CheckpointError(
                f"the residual '{key}' has {found.numel()} elements, the tensor {num_elements}",
                do="Start without residuals, or from a checkpoint of the same plan.",
            )
        return found

    def drop(self, key: str) -> None:
        """Forgets one; what it was for is no more."""
        self._of.pop(key, None)

    def forget(self) -> None:
        """Drops all; after a change of membership the keys mean other things."""
        self._of.clear()
        self._loaded.clear()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all residuals, the loaded ones that were not asked for yet included."""
        return {key: value.clone() for key, value in (self._loaded | self._of).items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replaces all residuals."""
        self.forget()
        self.loaded = True
        for key, value in state.items():
            self._loaded[key] = value.detach().to(torch.float32).reshape(-1).clone()
