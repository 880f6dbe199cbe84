"""Copies under way beside the engine: nobody waits for a device in the engine's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

import torch

from pluribus.comm.devices.base import Adapter, Mark

Done = Callable[[Exception | None], None]


class Watcher:
    """A thread that waits for marks in order and says when each is reached."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def watch(self, mark: Mark, done: Done) -> None:
        self._queue.put((mark, done))

    def close(self) -> None:
        """Ends the thread once what it was given before is done."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            mark, done = item
            error: Exception | None = None
            try:
                mark.wait()
            except Exception as failure:
                error = failure
            done(error)


class Staging:
    """A chip's way to the engine.

    Args:
        call: runs a function in the engine's thread.
    """

    def __init__(self, adapter: Adapter, call: Callable[[Callable[[], None]], None]) -> None:
        self.adapter = adapter
        self._call = call
        self._down = Watcher(f"pluribus-{adapter.name}-down")
        self._up = Watcher(f"pluribus-{adapter.name}-up")

    def copies(self, after: Mark | None = None) -> Copies:
        """For one collective, whose input is there at ``after``: by default, once what the calling
        thread has enqueued is done."""
        return Copies(self, after or self.adapter.mark())

    def fetch(self, host: torch.Tensor, device: torch.Tensor, after: Mark, done: Done) -> None:
        """Copies to the host; then calls ``done`` in the engine's thread."""
        self._watch(self._down, self.adapter.fetch(host, device, after), done)

    def store(self, device: torch.Tensor, host: torch.Tensor, after: Mark, done: Done) -> None:
        """Copies to the device; then calls ``done`` in the engine's thread."""
        self._watch(self._up, self.adapter.store(device, host, after), done)

    def host(self, device: torch.Tensor) -> torch.Tensor:
        """Host memory for a flat tensor's contents."""
        return self.adapter.memory(device.nbytes).view(device.dtype)

    def watch(self, mark: Mark, done: Done) -> None:
        """Calls ``done`` once the mark is reached, in no particular thread."""
        self._up.watch(mark, done)

    def behind(self, move: Callable[[], None], end: Done) -> Done:
        """``end``, but before it ends well ``move`` moves results about on the device."""

        def ended(error: Exception | None) -> None:
            if error is None:
                try:
                    move()
                    self._up.watch(self.adapter.mark(), end)
                except RuntimeError as failure:
                    error = failure
            if error is not None:
                end(error)

        return ended

    def _watch(self, watcher: Watcher, mark: Mark, done: Done) -> None:
        watcher.watch(mark, lambda error: self._call(partial(done, error)))

    def close(self) -> None:
        self._down.close()
        self._up.close()


class Copies:
    """What a job needs to run FETCH and STORE."""

    def __init__(self, staging: Staging, after: Mark) -> None:
        self._staging = staging
        self._after = after

    def memory(self, num_bytes: int) -> torch.Tensor:
        return self._staging.adapter.memory(num_bytes)

    def fetch(self, host: torch.Tensor, device: torch.Tensor, done: Done) -> None:
        self._staging.fetch(host, device, self._after, done)

    def store(self, device: torch.Tensor, host: torch.Tensor, done: Done) -> None:
        # Behind the start as well: what reads the old contents was enqueued before it.
        self._staging.store(device, host, self._after, done)
