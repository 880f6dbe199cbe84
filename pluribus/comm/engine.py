"""The thread that drives a group: one loop over all paths to all peers.

It never blocks but in poll, so that a death or an abort is seen at once. What ends an operation:

* its peers did what it needs: it is done;
* a peer has left that it needs: that collective and all later ones end, and the peers are told
  from which on; messages end one by one;
* a peer died, stalled, gave up or sent what is wrong, or time is over: everything ends, here and,
  because they are told, at all peers.

A path is read until its end, whatever is known of the peer by then: what was sent counts.
"""

from __future__ import annotations

import atexit
import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from pluribus.comm import errors
from pluribus.comm.costs import LinkCost
from pluribus.comm.errors import CollectiveError
from pluribus.comm.farewell import Farewells
from pluribus.comm.forks import keep_from_children
from pluribus.comm.health import Health, reason, stall_deadline
from pluribus.comm.job import Task
from pluribus.comm.lanes import Lanes
from pluribus.comm.mesh import Mesh, drop_stale
from pluribus.comm.messages import Done, Messages
from pluribus.comm.transports.base import (
    ABORT,
    CANCEL,
    GOODBYE,
    RECEIPT,
    CorruptFrame,
    Path,
    TransportError,
)
from pluribus.comm.watch import Watch

_CLOSING_SECONDS = 2.0  # for frames of finished operations to leave
_CLOSING_TICK = 2e-3
_JOIN_SECONDS = 5.0
_ROUNDS = 8  # of reading what is here already before peers' words are looked at again


class Engine:
    """Runs a group's tasks and messages in a thread of its own.

    Args:
        name: rank → how messages call it.
    """

    def __init__(self, name: Callable[[int], str]) -> None:
        self._stall = stall_deadline(None)
        self._name = name
        # Sockets, because one that is closed is never taken for a file that was opened since.
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._calls: deque[Callable[[], None]] = deque()
        self._farewells = Farewells()
        self._leaving: deque[tuple[float, Callable[[], None]]] = deque()
        self._last_turns = self._closed = False
        self._adopt(Mesh())
        self._failure: Exception | None = CollectiveError("the group is not connected yet")
        self._thread = threading.Thread(target=self._run, name="pluribus-comm", daemon=True)
        self._thread.start()
        keep_from_children(self)
        atexit.register(self.close)  # or peers would take a process that ends for one that died

    def _adopt(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lanes = Lanes(mesh, self._name)
        self._messages = Messages(mesh.epoch, mesh.messages)
        self._health = Health(mesh, self._stall, self._name)
        self._watch = Watch(mesh, self._wake_read)
        self._more = False  # something may be here that poll does not see
        self._lane_of = {lane.path.fileno(): lane for lane in self._lanes.all}
        self._readers: dict[int, Callable[[], None]] = {}
        for descriptor, lane in self._lane_of.items():
            self._readers[descriptor] = partial(self._lanes.read, lane)
        for path in mesh.messages.values():
            self._readers[path.fileno()] = partial(self._read_messages, path)
        for path in mesh.control.values():
            self._readers[path.fileno()] = partial(self._health.read, path)
        self._numbers = {
            path.fileno(): number
            for peer in mesh.control
            for number, path in enumerate(mesh.numbered(peer))
        }

    def descriptors(self) -> list[int]:
        """Of all connections."""
        return [path.fileno() for path in self._mesh.paths()]

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
            error = self._failure or self._health.left.get(peer)
            if error is not None:
                done(error, -1)
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
            for path in self._mesh.messages.values():  # one may have been held back until now
                self._read(path)

        self.call(act)

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    def call(self, function: Callable[[], None]) -> None:
        """Runs a function in the engine's thread; in the caller's when that has ended."""
        self._calls.append(function)
        if self._closed:
            self._run_calls()
        else:
            with contextlib.suppress(OSError):  # it is awake, or has ended
                self._wake_write.send(b"w")

    def connect(self, mesh: Mesh) -> None:
        """Takes new paths into use and leaves those before; returns when that is done.

        Raises:
            CollectiveError: the group was closed.
        """
        ready = threading.Event()

        def adopt() -> None:
            if self._last_turns:
                for path in mesh.paths():
                    path.close()
            else:
                self._adopt(mesh)
                self._failure = None
            ready.set()

        self.call(lambda: self._leave(adopt))
        while not ready.wait(_JOIN_SECONDS):
            if not self._thread.is_alive():
                raise CollectiveError("the group was closed")

    def expect(self, stall: float) -> None:
        """Sets after how many silent seconds, while something is pending, a peer has stalled."""

        def act() -> None:
            self._stall = self._health.stall = stall

        self.call(act)

    def adapt(self, links: Mapping[int, LinkCost]) -> None:
        """See `Mesh.adapt`."""
        self.call(lambda: self._mesh.adapt(links))

    def fail(self, error: CollectiveError) -> None:
        """Ends everything pending here and at the peers; returns when that is done here."""
        ended = threading.Event()

        def act() -> None:
            self._fail(error)
            ended.set()

        self.call(act)
        if threading.current_thread() is not self._thread:
            ended.wait(_JOIN_SECONDS)

    def close(self) -> None:
        """Says goodbye and ends the thread."""
        atexit.unregister(self.close)
        if self._closed:
            return

        def end() -> None:
            self._last_turns = True

        self.call(lambda: self._leave(end))
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    # The loop.

    def _run(self) -> None:
        while not self._last_turns or self._farewells:
            try:
                self._turn()
            except CollectiveError as error:
                self._fail(error)
            except Exception as error:
                self._fail(CollectiveError(f"{type(error).__name__}: {error}"))
        self._closed = True
        self._run_calls()
        self._wake_read.close()
        self._wake_write.close()

    def _turn(self) -> None:
        for path, events in self._watch.wait(self._patience(), self._held_up):
            if path is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
            elif path in self._watch:  # else what another brought ended it
                self._serve(path, events)
        self._run_calls()
        self._work()
        self._look_at_peers()
        self._check_time()
        self._leave_when_delivered()
        if self._farewells:
            self._farewells.turn()

    def _patience(self) -> float:
        """Milliseconds to poll for."""
        if self._calls or self._more:
            return 0
        if self._leaving or self._farewells:
            return 1000 * _CLOSING_TICK
        if self._health.until is not None:
            return max(0.0, (self._health.until - time.monotonic()) * 1000)
        return 1000 * (self._health.tick if self._pending else 1.0)

    @property
    def _pending(self) -> bool:
        return bool(self._lanes.jobs) or self._messages.pending

    def _begin_waiting(self) -> None:
        if not self._pending:
            self._health.starts_waiting()

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _held_up(self, path: Path) -> bool:
        """Whether what comes has no place yet."""
        lane = self._lane_of.get(path.fileno())
        if lane is not None:
            return lane.waiting
        held_back = path.peer in self._messages.held_back
        return held_back and path is self._mesh.messages.get(path.peer)

    def _serve(self, path: Path, events: int) -> None:
        if events & select.POLLIN:
            self._health.hears(path.peer)
        if path.drains or not self._held_up(path):
            self._read(path)
        if path.drains or events & ~select.POLLIN:
            path.flush()

    def _read(self, path: Path) -> None:
        """Reads what is there; what comes after a path's end is known once it is read."""
        reader = self._readers.get(path.fileno())
        if reader is None or path not in self._watch:
            return
        try:
            reader()
            here = path.receipt()
            if here is not None:
                self._health.tell(path.peer, RECEIPT, self._numbers[path.fileno()], here)
        except TransportError as error:
            again = getattr(error, "again", None)
            if again is not None:
                self._health.miss(path, self._numbers[path.fileno()], again)
                return
            self._watch.forget(path)
            if isinstance(error, CorruptFrame):
                what = f"from {self._name(path.peer)}: {error}"
                raise CollectiveError(what, [path.peer]) from error
            self._health.lose(path.peer, error)

    def _read_messages(self, path: Path) -> None:
        while (header := path.peek()) is not None:
            if drop_stale(path, self._mesh.epoch):
                continue
            if not self._messages.take(path, header):
                return

    def _work(self) -> None:
        """Does what can be done with what is here, but not for long."""
        for _ in range(_ROUNDS):
            self._lanes.settle()
            lanes = self._lanes.readable()
            if not lanes:
                break
            for lane in lanes:
                self._read(lane.path)
        else:
            self._lanes.settle()
        self._more = bool(self._lanes.readable())

    # Ends.

    def _check_time(self) -> None:
        if self._failure is not None:
            return
        if self._pending:
            now = time.monotonic()
            late = self._lanes.late(now) or self._messages.late(now)
            if late is not None:
                raise late
        self._health.check(self._pending)

    def _look_at_peers(self) -> None:
        """Draws the conclusions from what the peers have said, or have not."""
        health = self._health
        if health.until is not None and time.monotonic() >= health.until:
            for path in self._mesh.control.values():
                self._read(path)  # a goodbye is there before the ends of its sender's paths
            verdict = health.verdict()
            if verdict is not None:
                raise verdict
        if health.left and self._pending:
            self._messages.miss(health.left, self._has_ended)
            missed = self._lanes.needs(health.left, self._has_ended)
            if missed is not None:
                number, peer = missed
                error = health.left[peer]
                health.tell_all(CANCEL, reason(error), number)
                self._lanes.cancel(number, error)
        if health.cancelled is not None:
            self._lanes.cancel(*health.cancelled)
            health.cancelled = None
        self._lanes.end_cancelled()

    def _has_ended(self, path: Path) -> bool:
        """Whether all that a path brought is read."""
        return path not in self._watch

    def _fail(self, error: Exception) -> None:
        """Ends everything with this error and tells the peers why."""
        if self._failure is None:
            self._end(error, ABORT, reason(error))

    def _leave(self, then: Callable[[], None]) -> None:
        """Says goodbye once all that was queued has reached the peers."""
        self._leaving.append((time.monotonic() + _CLOSING_SECONDS, then))

    def _leave_when_delivered(self) -> None:
        while self._leaving:
            until, then = self._leaving[0]
            if self._failure is None:
                delivered = (path.delivered for path in self._mesh.paths())
                if time.monotonic() < until and not all(delivered):
                    return
                self._end(errors.Aborted("the group was closed or made anew"), GOODBYE)
            self._leaving.popleft()
            then()

    def _end(self, error: Exception, word: int, said: bytes = b"") -> None:
        self._failure = error
        self._more = False
        self._health.until = None
        with contextlib.suppress(OSError):
            self._health.tell_all(word, said, self._lanes.following)
        for path in self._mesh.paths():
            self._watch.forget(path)
        mesh, self._mesh = self._mesh, Mesh(self._mesh.epoch)
        self._lanes.fail(error)
        self._lanes.all.clear()
        self._messages.fail(error)
        self._farewells.add(mesh)
