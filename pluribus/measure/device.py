"""A rank's own device: finding it, waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pluribus.core.errors import MeasureError


def open_device(kind: str) -> torch.device:
    """Makes the first device this process sees its current one.

    Args:
        kind: torch device type.

    Raises:
        MeasureError: torch sees no such device.
    """
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    if found is None or found.type != kind:
        raise MeasureError(
            f"PyTorch sees no device '{kind}'",
            do="Install the PyTorch build for it, and check that its driver works.",
        )
    torch.accelerator.set_device_index(0)
    return torch.device(kind, 0)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from the call until the device has finished its work."""
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
