"""Chips with streams and events as PyTorch knows them: CUDA, and what follows its example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm.devices.base import Adapter, Library, Mark
from pluribus.comm.reduce import Op

_OPS = frozenset({Op.SUM, Op.PRODUCT, Op.MIN, Op.MAX})
_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64,
     torch.int8, torch.uint8}
)  # fmt: skip


class EventMark(Mark):
    """An event on a stream."""

    def __init__(self, event: Any, module: Any, device: torch.device) -> None:
        self._event = event
        self._module = module
        self._device = device

    def wait(self) -> None:
        self._event.synchronize()  # without the GIL

    def hold(self) -> None:
        self._module.current_stream(self._device).wait_event(self._event)


class Accelerator(Adapter):
    """A chip behind `torch.get_device_module`: one stream to the host, one to the device, so that
    both of its copy engines work at once, beside whatever the chip computes.

    Subclasses for a vendor override `make_library`, and `make_event` where events take arguments.
    """

    def __init__(self, device: torch.device) -> None:
        self.name = device.type
        self.device = device
        properties = torch.get_device_module(device).get_device_properties(device)
        self.identity = str(getattr(properties, "uuid", device))
        self._module = torch.get_device_module(device)
        with self._module.device(device):
            self._down, self._up = self._module.Stream(), self._module.Stream()

    def memory(self, num_bytes: int) -> torch.Tensor:
        # PyTorch keeps pinned blocks for the next time, and not before copies through them end.
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        return self._mark_of(self._module.current_stream(self.device))

    def _mark_of(self, stream: Any) -> Mark:
        event = self.make_event()
        event.record(stream)
        return EventMark(event, self._module, self.device)

    def make_event(self) -> Any:
        """An event; waiting for it should let the thread sleep."""
        return self._module.Event()

    def fetch(self, host: torch.Tensor, device: torch.Tensor, after: Mark) -> Mark:
        return self._copy(self._down, host, device, after, device)

    def store(self, device: torch.Tensor, host: torch.Tensor, after: Mark) -> Mark:
        return self._copy(self._up, device, host, after, device)

    def _copy(
        self, stream: Any, target: torch.Tensor, source: torch.Tensor, after: Mark,
        device: torch.Tensor,
    ) -> Mark:  # fmt: skip
        with self._module.device(self.device), self._module.stream(stream):
            after.hold()
            target.copy_(source, non_blocking=True)
            device.record_stream(stream)  # its memory is not reused before this copy
            return self._mark_of(stream)

    def library(self, store: dist.Store, rank: int, size: int, timeout: float) -> Library | None:
        backend = self.make_library(store, rank, size, timeout)
        if backend is None:
            return None
        with contextlib.suppress(RuntimeError, NotImplementedError):
            backend.eager_connect_single_device(self.device)  # else its first operation does
        return StreamLibrary(self, backend)

    def make_library(
        self, store: dist.Store, rank: int, size: int, timeout: float
    ) -> dist.Backend | None:
        """c10d's backend of the vendor, not registered anywhere; None: it has none."""
        return None


class StreamLibrary(Library):
    """A c10d backend whose works end on streams: ``Work.wait`` makes the current stream wait."""

    def __init__(self, adapter: Accelerator, backend: dist.Backend) -> None:
        self.backend = backend
        self.ops = _OPS
        self.dtypes = _DTYPES
        self._adapter = adapter
        module = torch.get_device_module(adapter.device)
        self._module = module
        with module.device(adapter.device):
            self._stream = module.Stream()
        self._aborted = False

    def start(
        self,
        call: Callable[[dist.Backend], dist.Work],
        after: Mark,
        tensors: Sequence[torch.Tensor],
    ) -> Mark:
        with self._module.device(self._adapter.device), self._module.stream(self._stream):
            after.hold()
            call(self.backend).wait()
            for tensor in tensors:
                tensor.record_stream(self._stream)
            return self._adapter.mark()

    def abort(self) -> None:
        if not self._aborted:
            self._aborted = True
            self.backend.abort()
