"""The thread that drives a group: one loop over all paths to all peers.

It never blocks but in poll, so that a death or an abort is seen at once. Any failure ends every
pending operation: what one rank could not finish, no rank can.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from pluribus.comm import errors
from pluribus.comm.errors import CollectiveError
from pluribus.comm.health import Health, reason
from pluribus.comm.job import Task
from pluribus.comm.lanes import Lanes
from pluribus.comm.mesh import Mesh, drop_stale
from pluribus.comm.messages import Done, Messages
from pluribus.comm.transports.base import ABORT, GOODBYE, Path, PeerGone, TransportError

_HANGUP = getattr(select, "POLLRDHUP", 0)
_DOWN = _HANGUP | select.POLLHUP | select.POLLERR
_CLOSING_SECONDS = 2.0  # for frames of finished operations to leave
_JOIN_SECONDS = 5.0


class Engine:
    """Runs a group's tasks and messages in a thread of its own.

    Args:
        stall_seconds: a peer that answers nothing for so long while something is pending has
            stalled.
        name: rank → how messages call it.
    """

    def __init__(self, stall_seconds: float, name: Callable[[int], str]) -> None:
        self._stall = stall_seconds
        self._name = name
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._calls: deque[Callable[[], None]] = deque()
        self._closed = False
        self._adopt(Mesh())
        self._failure: Exception | None = CollectiveError("the group is not connected yet")
        self._thread = threading.Thread(target=self._run, name="pluribus-comm", daemon=True)
        self._thread.start()

    def _adopt(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lanes = Lanes(mesh, self._name)
        self._messages = Messages(mesh.epoch, mesh.messages)
        self._health = Health(mesh, self._stall, self._name)
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        self._interest: dict[int, int] = {}
        self._hung_up: set[int] = set()  # ended behind a frame that waits
        self._lane_of = {lane.path.fileno(): lane for lane in self._lanes.all}
        self._paths = {path.fileno(): path for path in mesh.paths()}
        self._readers: dict[int, Callable[[], None]] = {}
        for descriptor, lane in self._lane_of.items():
            self._readers[descriptor] = partial(self._lanes.read, lane)
        for path in mesh.messages.values():
            self._readers[path.fileno()] = partial(self._read_messages, path)
        for path in mesh.control.values():
            self._readers[path.fileno()] = partial(self._read_control, path)

    # What other threads call.

    def submit(self, task: Task) -> None:
        """Starts a collective; all ranks submit the same in the same order."""

        def act() -> None:
            if self._failure is not None:
                task.done(self._failure)
                return
            self._begin_waiting()
            self._lanes.start(task)

        self.call(act)

    def send(self, peer: int, tag: int, data: memoryview, done: Done) -> None:
        """Sends a message; ``data`` must not change until ``done(error, peer)``."""

        def act() -> None:
            if self._failure is not None:
                done(self._failure, -1)
                return
            self._begin_waiting()
            self._messages.send(peer, tag, data, done)
            if peer in self._mesh.messages:
                self._mesh.messages[peer].flush()

        self.call(act)

    def receive(
        self, peer: int | None, tag: int, data: memoryview, timeout: float, done: Done
    ) -> None:
        """Receives a message into ``data``, from any peer if None; then ``done(error, peer)``."""

        def act() -> None:
            if self._failure is not None:
                done(self._failure, -1)
                return
            self._begin_waiting()
            self._messages.receive(peer, tag, data, time.monotonic() + timeout, done)
            for path in self._mesh.messages.values():
                self._read_messages(path)

        self.call(act)

    def call(self, function: Callable[[], None]) -> None:
        """Runs a function in the engine's thread."""
        self._calls.append(function)
        with contextlib.suppress(OSError):  # it is awake, or has ended
            os.write(self._wake_write, b"w")

    def connect(self, mesh: Mesh) -> None:
        """Takes new paths into use and forgets what was before; returns when that is done."""
        ready = threading.Event()

        def act() -> None:
            self._fail(errors.Aborted("the group was made anew"))
            self._adopt(mesh)
            self._failure = None
            ready.set()

        self.call(act)
        ready.wait()

    def abort(self, why: str) -> None:
        """Ends everything pending here and at the peers; returns when that is done here."""
        ended = threading.Event()

        def act() -> None:
            self._fail(errors.Aborted(why))
            ended.set()

        self.call(act)
        if threading.current_thread() is not self._thread:
            ended.wait(_JOIN_SECONDS)

    def close(self) -> None:
        """Says goodbye and ends the thread."""
        if self._closed:
            return

        def act() -> None:
            if self._failure is None:
                self._health.tell_all(GOODBYE)
                self._drain()
            self._end(errors.Aborted("the group was closed"))
            self._closed = True

        self.call(act)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    # The loop.

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except CollectiveError as error:
                self._fail(error)
            except TransportError as error:
                self._lost(error)
            except Exception as error:
                self._fail(CollectiveError(f"{type(error).__name__}: {error}"))

    def _turn(self) -> None:
        self._update_interest()
        for descriptor, events in self._poll.poll(self._patience()):
            if descriptor == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                continue
            path = self._paths.get(descriptor)
            if path is None:
                continue
            if events & _DOWN and self._held_up(path):
                # Its end lies behind a frame that waits: a death, unless a goodbye came before.
                self._hung_up.add(descriptor)
                self._lost(PeerGone(path.peer, "the connection was closed"))
                continue
            self._health.heard[path.peer] = time.monotonic()
            try:
                if events & select.POLLOUT or path.drains:
                    path.flush()
                self._readers[descriptor]()
            except TransportError as error:
                self._forget(path)
                self._lost(error)
        while self._calls:
            self._calls.popleft()()
        self._lanes.settle()
        self._check_time()

    def _patience(self) -> float:
        """Milliseconds to poll for."""
        if self._calls:
            return 0
        if self._health.until is not None:
            return max(0.0, (self._health.until - time.monotonic()) * 1000)
        return 1000 * min(0.25, self._stall / 4) if self._pending else 1000

    @property
    def _pending(self) -> bool:
        return bool(self._lanes.jobs) or self._messages.pending

    def _begin_waiting(self) -> None:
        if not self._pending:
            self._health.starts_waiting()

    def _update_interest(self) -> None:
        for descriptor, path in self._paths.items():
            held_up = self._held_up(path)
            wants = select.POLLOUT if path.wants_write else 0
            if path.drains or not held_up:
                wants |= select.POLLIN
            ended = descriptor in self._hung_up or self._health.has_left(path.peer)
            if held_up and ended:
                wants = 0  # all it had to say is here; poll would report the end again and again
            elif held_up:
                wants |= _HANGUP
            known = self._interest.get(descriptor, 0)
            self._interest[descriptor] = wants
            if wants != known and (wants or not ended):
                self._poll.register(descriptor, wants)
            elif wants != known:
                self._poll.unregister(descriptor)

    def _held_up(self, path: Path) -> bool:
        """Whether what comes has no place yet."""
        lane = self._lane_of.get(path.fileno())
        if lane is not None:
            return lane.waiting
        held_back = path.peer in self._messages.held_back
        return held_back and path is self._mesh.messages.get(path.peer)

    def _read_messages(self, path: Path) -> None:
        while (header := path.peek()) is not None:
            if drop_stale(path, self._mesh.epoch):
                continue
            if not self._messages.take(path, header):
                return

    def _read_control(self, path: Path) -> None:
        if self._health.read(path):
            self._forget(path)

    def _forget(self, path: Path) -> None:
        """Polls a path no more."""
        descriptor = path.fileno()
        if descriptor < 0:  # closed before
            return
        with contextlib.suppress(KeyError):
            self._poll.unregister(descriptor)
        self._paths.pop(descriptor, None)
        self._interest.pop(descriptor, None)
        self._hung_up.discard(descriptor)

    def _drain(self) -> None:
        until = time.monotonic() + _CLOSING_SECONDS
        while time.monotonic() < until:
            waiting = [path for path in self._mesh.paths() if path.unsent]
            if not waiting:
                return
            select.select([], [path for path in waiting if path.wants_write], [], 5e-3)
            for path in waiting:
                with contextlib.suppress(TransportError):
                    path.flush()

    # Faults.

    def _check_time(self) -> None:
        if self._failure is not None:
            return
        if self._pending:
            now = time.monotonic()
            late = self._lanes.late(now) or self._messages.late(now)
            if late is not None:
                raise late
        self._health.check(self._pending, self._needed)

    def _needed(self, left: set[int]) -> int | None:
        """One of the peers that have left from which something pending waits for more than it
        sent: its paths are read to their ends."""
        found = self._lanes.needs(left, self._has_ended)
        if found is not None:
            return found
        messages = {path.peer for path in self._mesh.messages.values() if self._has_ended(path)}
        return self._messages.needs(left & messages)

    def _has_ended(self, path: Path) -> bool:
        """Whether all that a path brought is read."""
        return path.fileno() not in self._paths

    def _lost(self, error: TransportError) -> None:
        if self._failure is not None:
            return
        try:
            self._health.lost(error)
        except CollectiveError as corrupt:
            self._fail(corrupt)

    def _fail(self, error: Exception) -> None:
        """Ends everything with this error and tells the peers why."""
        if self._failure is None:
            self._health.tell_all(ABORT, reason(error))
        self._end(error)

    def _end(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._health.until = None
        for path in self._mesh.paths():
            self._forget(path)
            path.close()
        self._mesh = Mesh(self._mesh.epoch)  # descriptors of closed paths soon mean other files
        self._lanes.fail(error)
        self._messages.fail(error)
