"""What a device adapter is: how tensors of one kind of chip reach host memory and come back.

Collectives work on host memory; the adapter moves chunks to it and from it while other chunks
are on the wire. What the chip's own stream has not finished yet is waited for by an event, never
by blocking the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch


class Event(Protocol):
    """A point in the chip's work."""

    def query(self) -> bool:
        """Whether the chip is past it."""


class DeviceAdapter(ABC):
    """Moves chunks between one chip and the host.

    Attributes:
        kind: device type of its tensors, e.g. ``"cuda"``.
        library: c10d backend that connects chips of this kind among themselves, e.g. ``"nccl"``;
            None where the host is the way.
        in_place: whether its tensors already are host memory.
    """

    kind: ClassVar[str]
    library: ClassVar[str | None] = None
    in_place: ClassVar[bool] = False

    @abstractmethod
    def host_buffer(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] of host memory that the chip copies to at full speed (pinned)."""

    @abstractmethod
    def begin(self) -> Event:
        """An event after all work the caller has queued on the chip so far."""

    @abstractmethod
    def copy_out(self, source: torch.Tensor, host: torch.Tensor, after: Event) -> Event:
        """Starts copying a chunk to the host, once ``after`` is reached; done at the event."""

    @abstractmethod
    def copy_in(self, host: torch.Tensor, target: torch.Tensor) -> Event:
        """Starts copying a chunk to the chip; done at the event."""

    @abstractmethod
    def finish(self, event: Event) -> None:
        """Makes the caller's stream wait for the event, so that what it queues next comes after."""
