"""A chip made of this host's memory: its copies take time, its island has a library of its own.

What runs over it runs over an accelerator by the same steps, so unlike islands are tested on any
machine. ``fake-NAME@GBPS`` sets the rate of copies in each direction.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pluribus.comm.devices.base import Adapter, Library, Mark
from pluribus.comm.reduce import Op
from pluribus.core.errors import ConfigError

PREFIX = "fake-"
_GIGABYTES_PER_S = 8.0
_SHORTEST_SLEEP = 1e-3  # a shorter one would last much longer than asked for


class Done(Mark):
    """What is done already: this host computes in the calling thread."""

    def wait(self) -> None:
        pass

    hold = wait


class FakeMark(Mark):
    """A copy in a fake chip's queue."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: Exception | None = None

    def set(self, error: Exception | None = None) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self._error is not None:
            raise self._error

    hold = wait


class _CopyEngine:
    """Copies one after the other, at a set speed."""

    def __init__(self, bytes_per_s: float, name: str) -> None:
        self._bytes_per_s = bytes_per_s
        self._owed = 0.0
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def start(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Mark:
        mark = FakeMark()
        self._queue.put((target, source, after, mark))
        return mark

    def close(self) -> None:
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            target, source, after, mark = item
            try:
                after.wait()
                target.copy_(source)
                self._owed += target.nbytes / self._bytes_per_s
                if self._owed > _SHORTEST_SLEEP:
                    time.sleep(self._owed)
                    self._owed = 0.0
                mark.set()
            except Exception as error:
                mark.set(error)


class Fake(Adapter):
    """See the module.

    Args:
        name: ``fake-NAME`` or ``fake-NAME@GBPS``.

    Raises:
        ConfigError: the rate is not a positive number.
    """

    def __init__(self, name: str) -> None:
        self.name, _, rate = name.partition("@")
        self.library_name = self.name
        self.identity = f"{self.name} {os.getpid()}"
        try:
            gigabytes_per_s = float(rate) if rate else _GIGABYTES_PER_S
        except ValueError:
            gigabytes_per_s = 0.0
        if not gigabytes_per_s > 0:
            raise ConfigError(
                f"'{name}' has no rate", where="comm options", do="Write fake-a, or fake-a@2.5."
            )
        self._down = _CopyEngine(gigabytes_per_s * 1e9, f"{self.name}-down")
        self._up = _CopyEngine(gigabytes_per_s * 1e9, f"{self.name}-up")

    def memory(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def mark(self) -> Mark:
        return Done()

    def fetch(self, host: torch.Tensor, device: torch.Tensor, after: Mark) -> Mark:
        return self._down.start(host, device, after)

    def store(self, device: torch.Tensor, host: torch.Tensor, after: Mark) -> Mark:
        return self._up.start(device, host, after)

    def library(self, store: dist.Store, rank: int, size: int, timeout: float) -> Library | None:
        limit = timedelta(seconds=timeout)
        return FakeLibrary(dist.ProcessGroupGloo(store, rank, size, limit))

    def close(self) -> None:
        self._down.close()
        self._up.close()


class _WorkMark(Mark):
    """The end of one of gloo's works. Each wait for its reduce-scatter writes the output again, so
    it is waited for once."""

    def __init__(self, work: dist.Work) -> None:
        self._work: dist.Work | None = work
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            if self._work is not None:
                self._work.wait()
                self._work = None

    hold = wait


class FakeLibrary(Library):
    """Gloo as the library of a fake chip's vendor; as of real ones, not every op is there."""

    ops = frozenset({Op.SUM, Op.PRODUCT, Op.MIN, Op.MAX})
    dtypes = frozenset({torch.float32, torch.float64, torch.int32, torch.int64})

    def __init__(self, backend: dist.Backend) -> None:
        self.backend = backend

    def start(
        self,
        call: Callable[[dist.Backend], dist.Work],
        after: Mark,
        tensors: Sequence[torch.Tensor],
    ) -> Mark:
        after.wait()
        return _WorkMark(call(self.backend))

    def abort(self) -> None:
        self.backend.abort()
