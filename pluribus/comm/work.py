"""What an operation returns: c10d's Work, with futures that never run callbacks in the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist

from pluribus.comm.errors import CollectiveTimeout
from pluribus.comm.facade import unseen_by_compilers


@unseen_by_compilers
class Work(dist.Work):
    """An operation under way.

    Args:
        result: what its future resolves to.
        callbacks: threads that complete futures: what a callback waits for (a nested
            collective, as in DDP's PowerSGD hook) must not keep the engine from running it.
        after: called once, by whoever learns first that the operation ended well: copies results
            to where the caller wants them.
    """

    def __init__(
        self,
        result: list[torch.Tensor],
        callbacks: ThreadPoolExecutor,
        after: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._result = result
        self._callbacks = callbacks
        self._after = after
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._future: torch.futures.Future | None = None
        self.source = -1
        self._followers: list[Callable[[Exception | None], None]] = []
        self.keep: torch.Tensor | None = None  # memory that must outlive the operation

    def then(self, follower: Callable[[Exception | None], None]) -> None:
        """Calls a short function with how it ended; by the engine's thread, or at once."""
        with self._lock:
            if not self._ended.is_set():
                self._followers.append(follower)
                return
        follower(self._error)

    def end(self, error: Exception | None, source: int | None = None) -> None:
        """The engine is done with it."""
        with self._lock:
            if self._ended.is_set():
                return
            self.source = self.source if source is None else source
            if error is None and self._after is not None:
                try:
                    self._after()
                except Exception as failure:
                    error = failure
            self._error = error
            self._after = None
            self._ended.set()
            future = self._future
        for follower in self._followers:
            follower(error)
        if future is not None:
            self._callbacks.submit(self._complete, future)

    def _complete(self, future: torch.futures.Future) -> None:
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._result)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits for the end.

        Raises:
            CollectiveError: it did not end well, or not in this time.
        """
        limit = timeout.total_seconds() if timeout else 0.0
        if not self._ended.wait(limit if limit > 0 else None):
            raise CollectiveTimeout(f"not done after {limit:.1f} s")
        if self._error is not None:
            raise self._error
        return True

    def get_future(self) -> torch.futures.Future:
        with self._lock:
            if self._future is None:
                places = {t.device for t in self._result if t.device.type != "cpu"}
                self._future = torch.futures.Future(devices=list(places))
                if self._ended.is_set():
                    self._complete(self._future)
            return self._future

    def is_completed(self) -> bool:
        return self._ended.is_set()

    def is_success(self) -> bool:
        return self._ended.is_set() and self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> list[torch.Tensor]:
        return self._result

    def synchronize(self) -> None:
        self.wait()

    def source_rank(self) -> int:
        return self.source

    _source_rank = source_rank


@unseen_by_compilers
class Together(dist.Work):
    """Several works of c10d as one."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> bool:
        for work in self._works:
            work.wait(timeout) if timeout else work.wait()
        return True

    def get_future(self) -> torch.futures.Future:
        parts = torch.futures.collect_all([work.get_future() for work in self._works])
        return parts.then(lambda done: [tensor for part in done.value() for tensor in part.value()])

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def synchronize(self) -> None:
        self.wait()
