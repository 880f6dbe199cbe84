"""What an adapter of a kind of chip must do, so that unlike chips can sum tensors together.

A vendor's package registers one under the entry point group ``pluribus.devices``: the name is
PyTorch's device type (``npu``, ``musa`` …), the object a function of a `torch.device` that returns
an `Adapter`. Where the vendor's PyTorch plugin has streams and events like CUDA's, a subclass of
`accelerator.Accelerator` that names its library is all there is to write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from pluribus.comm.reduce import Op

if TYPE_CHECKING:
    import torch.distributed as dist


class Mark(ABC):
    """A place in a device's queue of work: all that was enqueued before it."""

    @abstractmethod
    def wait(self) -> None:
        """Blocks this thread until the device has come so far; other threads run meanwhile."""

    @abstractmethod
    def hold(self) -> None:
        """What this thread gives the device from now on runs behind the mark. Blocks only where a
        device has no queue of its own."""


class Adapter(ABC):
    """One chip of a process. Called from the user's thread and from the engine's.

    Attributes:
        name: PyTorch's device type, or ``fake-…``.
        identity: of the chip; differs between any two of one machine.
        library_name: of the vendor's collectives; islands of one name may use them. Empty: none.
    """

    name: str
    identity: str
    library_name: str = ""

    @abstractmethod
    def memory(self, num_bytes: int) -> torch.Tensor:
        """Host memory that copies go through at full speed (pinned): uint8 [num_bytes]."""

    @abstractmethod
    def mark(self) -> Mark:
        """The end of what the calling thread has enqueued."""

    @abstractmethod
    def fetch(self, host: torch.Tensor, device: torch.Tensor, after: Mark) -> Mark:
        """Starts a copy to the host.

        Args:
            host: from `memory`, flat, of ``device``'s dtype and size.
            after: where ``device`` is filled.

        Returns:
            Where the copy is done. Copies to the host end in the order they were started, and do
            not wait for copies to the device.
        """

    @abstractmethod
    def store(self, device: torch.Tensor, host: torch.Tensor, after: Mark) -> Mark:
        """Starts a copy to the device behind ``after``; ends in order, as `fetch` does."""

    def library(self, store: dist.Store, rank: int, size: int, timeout: float) -> Library | None:
        """The vendor's own collectives among the members of an island; None if there are none.

        Args:
            store: keys of this library only; every member calls with the same.
            rank, size: within the island.
        """
        return None

    def close(self) -> None:
        """Ends threads, if the adapter has any."""
        return


class Library(ABC):
    """A vendor's collectives in one island.

    Attributes:
        backend: c10d's backend object, for operations that need nobody outside the island.
        ops: reductions it can do.
        dtypes: it can reduce.
    """

    backend: dist.Backend
    ops: frozenset[Op]
    dtypes: frozenset[torch.dtype]

    def can(self, op: Op, dtype: torch.dtype) -> bool:
        return op in self.ops and dtype in self.dtypes

    @abstractmethod
    def start(
        self,
        call: Callable[[dist.Backend], dist.Work],
        after: Mark,
        tensors: Sequence[torch.Tensor],
    ) -> Mark:
        """Enqueues a collective behind ``after``; all members do so in the same order.

        Args:
            tensors: that it reads and writes; they stay allocated until it is done.
        """

    @abstractmethod
    def abort(self) -> None:
        """Ends what is under way; the library is of no use afterwards. May be repeated."""
