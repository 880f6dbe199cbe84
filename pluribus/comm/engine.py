"""The thread that drives a group: one loop over all paths to all peers.

It queues frames as their steps become ready, uses what comes, answers for its own life and
watches the peers'. It never blocks but in poll, so that a death or an abort is seen at once. Any
failure ends every pending operation: what one rank could not finish, no rank can.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pluribus.comm import errors
from pluribus.comm.errors import CollectiveError
from pluribus.comm.job import Job, Task
from pluribus.comm.messages import Done, Messages
from pluribus.comm.program import Kind
from pluribus.comm.transports.base import (
    ABORT,
    DATA,
    GOODBYE,
    PING,
    PONG,
    CorruptFrame,
    Header,
    Path,
    PeerGone,
    TransportError,
)

_GRACE_SECONDS = 0.01  # after a death: what the dead had already sent may still end an operation
_FRAMES_PER_TURN = 8
_NOTHING = memoryview(b"")


class Lane:
    """A path with what goes over it next.

    Attributes:
        key: (peer, number of the lane).
        sends, receives: jobs with frames left for it, in order.
        waiting: whether the frame at its head has no place yet.
    """

    __slots__ = ("key", "path", "receives", "sends", "waiting")

    def __init__(self, key: tuple[int, int], path: Path) -> None:
        self.key = key
        self.path = path
        self.sends: deque[Job] = deque()
        self.receives: deque[Job] = deque()
        self.waiting = False


class Mesh:
    """The paths of one epoch.

    Attributes:
        epoch: goes into headers.
        data: peer → lanes for chunks of collectives.
        messages, control: peer → path.
    """

    def __init__(
        self,
        epoch: int,
        data: Mapping[int, Sequence[Path]],
        messages: Mapping[int, Path],
        control: Mapping[int, Path],
    ) -> None:
        self.epoch = epoch
        self.data = data
        self.messages = messages
        self.control = control

    def paths(self) -> list[Path]:
        lanes = [path for paths in self.data.values() for path in paths]
        return [*lanes, *self.messages.values(), *self.control.values()]


class Engine:
    """Runs a group's tasks and messages in a thread of its own.

    Args:
        stall_seconds: a peer that has not answered for so long while something is pending has
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
        self._reset()
        self._failure: Exception | None = CollectiveError("the group is not connected yet")
        self._thread = threading.Thread(target=self._run, name="pluribus-comm", daemon=True)
        self._thread.start()

    def _reset(self) -> None:
        self._mesh = Mesh(0, {}, {}, {})
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._by_descriptor: dict[int, Callable[[], None]] = {}
        self._paths: dict[int, Path] = {}
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        self._interest: dict[int, int] = {}
        self._jobs: deque[Job] = deque()
        self._number = 0
        self._work: deque[tuple[Job, int]] = deque()
        self._dirty: set[Lane] = set()
        self._heard: dict[int, float] = {}
        self._pinged = 0.0
        self._left: set[int] = set()  # said goodbye
        self._departed: set[int] = set()  # and nothing more can come from them
        self._lane_of: dict[int, Lane] = {}
        self._dead: tuple[float, PeerGone] | None = None
        self._messages = Messages(0, {})

    # What other threads call.

    def submit(self, task: Task) -> None:
        self.call(partial(self._start, task))

    def call(self, function: Callable[[], None]) -> None:
        """Runs a function in the engine's thread."""
        self._calls.append(function)
        with contextlib.suppress(OSError):  # it is awake, or has ended
            os.write(self._wake_write, b"w")

    def send(self, peer: int, tag: int, data: memoryview, done: Done) -> None:
        def act() -> None:
            if self._failure is not None:
                done(self._failure, -1)
                return
            self._messages.send(peer, tag, data, done)
            self._flush_messages(peer)

        self.call(act)

    def receive(
        self, peer: int | None, tag: int, data: memoryview, timeout: float, done: Done
    ) -> None:
        def act() -> None:
            if self._failure is not None:
                done(self._failure, -1)
                return
            until = time.monotonic() + timeout
            self._messages.receive(peer, tag, data, until, done)
            for path in self._mesh.messages.values():
                self._read_messages(path)

        self.call(act)

    def connect(self, mesh: Mesh) -> None:
        """Takes new paths into use and forgets what was before; returns when that is done."""
        ready = threading.Event()

        def act() -> None:
            self._fail(errors.Aborted("the group was made anew"))
            self._reset()
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
            ended.wait(5.0)

    def close(self) -> None:
        """Says goodbye and ends the thread."""
        if self._closed:
            return

        def act() -> None:
            if self._failure is None:
                for path in self._mesh.control.values():
                    with contextlib.suppress(TransportError):
                        path.queue(Header(GOODBYE, self._mesh.epoch, 0, 0, 0), _NOTHING)
                        path.flush()
                self._drain()
            self._end(errors.Aborted("the group was closed"))
            self._closed = True

        self.call(act)
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _drain(self) -> None:
        """Queued frames of finished operations leave before the paths close."""
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            waiting = [path for path in self._mesh.paths() if path.wants_write]
            if not waiting:
                return
            select.select([], waiting, [], 0.05)
            for path in waiting:
                with contextlib.suppress(TransportError):
                    path.flush()

    # The loop.

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except TransportError as error:
                self._lost(error)
            except CollectiveError as error:
                self._fail(error)
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
            self._heard[path.peer] = time.monotonic()
            try:
                if events & select.POLLOUT or path.drains:
                    path.flush()
                self._by_descriptor[descriptor]()
            except TransportError as error:
                self._forget(path)
                self._lost(error)
        while self._calls:
            self._calls.popleft()()
        self._settle()
        self._check_time()

    def _patience(self) -> float:
        """Milliseconds to poll for."""
        if self._calls or self._work:
            return 0
        if self._dead is not None:
            return max(0.0, (self._dead[0] - time.monotonic()) * 1000)
        return 1000 * min(0.25, self._stall / 4) if self._pending else 1000

    @property
    def _pending(self) -> bool:
        return bool(self._jobs) or self._messages.pending

    def _update_interest(self) -> None:
        for descriptor, path in self._paths.items():
            wants = select.POLLOUT if path.wants_write else 0
            lane = self._lane_of.get(descriptor)
            if path.drains or lane is None or not lane.waiting:
                wants |= select.POLLIN
            held_back = path.peer in self._messages.held_back and not path.drains
            if held_back and path is self._mesh.messages.get(path.peer):
                wants &= ~select.POLLIN
            if self._interest.get(descriptor) != wants:
                self._interest[descriptor] = wants
                self._poll.register(descriptor, wants)

    def _settle(self) -> None:
        """Runs what is ready until nothing is."""
        while True:
            while self._work:
                job, step = self._work.popleft()
                self._ready(job, step)
            if self._dirty:
                for lane in list(self._dirty):
                    self._dirty.discard(lane)
                    self._queue_frames(lane)
                continue
            moved = False
            for lane in self._lanes.values():
                if lane.waiting and self._can_use(lane):
                    self._read_lane(lane)
                    moved = True
            if not moved and not self._work and not self._dirty:
                return

    def _adopt(self, mesh: Mesh) -> None:
        self._mesh = mesh
        now = time.monotonic()
        for peer, paths in mesh.data.items():
            for number, path in enumerate(paths):
                lane = Lane((peer, number), path)
                self._lanes[lane.key] = lane
                self._lane_of[path.fileno()] = lane
                self._watch(path, partial(self._read_lane, lane))
        for path in mesh.messages.values():
            self._watch(path, partial(self._read_messages, path))
        for peer, path in mesh.control.items():
            self._heard[peer] = now
            self._watch(path, partial(self._read_control, path))
        self._messages = Messages(mesh.epoch, mesh.messages)

    def _watch(self, path: Path, read: Callable[[], None]) -> None:
        self._paths[path.fileno()] = path
        self._by_descriptor[path.fileno()] = read

    # Collectives.

    def _start(self, task: Task) -> None:
        if self._failure is not None:
            task.done(self._failure)
            return
        if not self._pending:
            now = time.monotonic()
            self._heard = dict.fromkeys(self._heard, now)
        self._number += 1
        job = Job(task, self._number, time.monotonic() + task.timeout)
        if not job.left:
            task.done(None)
            return
        self._jobs.append(job)
        for key in job.sent:
            self._lanes[key].sends.append(job)
            self._dirty.add(self._lanes[key])
        for key in job.received:
            self._lanes[key].receives.append(job)
        for step, waits in enumerate(task.program.waits):
            if not waits and job.steps[step].peer < 0:
                self._work.append((job, step))

    def _ready(self, job: Job, number: int) -> None:
        """A step waits for nothing any more."""
        step = job.steps[number]
        if step.peer < 0:
            job.run(step)
            self._finish(job, number)
        elif step.kind is Kind.SEND:
            self._dirty.add(self._lanes[step.peer, step.part % self._num_lanes(step.peer)])

    def _num_lanes(self, peer: int) -> int:
        return len(self._mesh.data[peer])

    def _finish(self, job: Job, number: int) -> None:
        for ready in job.done_with(number):
            self._work.append((job, ready))
        if not job.left:
            with contextlib.suppress(ValueError):
                self._jobs.remove(job)
            job.task.done(None)

    def _queue_frames(self, lane: Lane) -> None:
        """Frames leave in program order, those of the next job after all of this one's."""
        while lane.sends:
            job = lane.sends[0]
            steps = job.task.program.sends[lane.key]
            at = job.sent[lane.key]
            while at < len(steps) and not job.waits[steps[at]]:
                number = steps[at]
                step = job.steps[number]
                payload = job.bytes(step.source)
                header = Header(DATA, self._mesh.epoch, job.number, step.part, len(payload))
                at += 1
                job.sent[lane.key] = at
                lane.path.queue(header, payload, partial(self._finish, job, number))
            if at < len(steps):
                break
            lane.sends.popleft()
        lane.path.flush()

    def _can_use(self, lane: Lane) -> bool:
        if not lane.receives:
            return False
        job = lane.receives[0]
        return not job.waits[job.task.program.receives[lane.key][job.received[lane.key]]]

    def _read_lane(self, lane: Lane) -> None:
        for _ in range(_FRAMES_PER_TURN):
            header = lane.path.peek()
            if header is None:
                lane.waiting = False
                return
            if self._is_stale(lane.path, header):
                continue
            if not self._can_use(lane):
                lane.waiting = True
                return
            job = lane.receives[0]
            steps = job.task.program.receives[lane.key]
            number = steps[job.received[lane.key]]
            step = job.steps[number]
            self._compare(lane, job, header, step.part, job.num_bytes(step.target))
            into = job.bytes(step.target) if step.kind is Kind.RECEIVE else None
            payload = lane.path.receive(into)
            if payload is None:
                lane.waiting = False
                return
            if into is None:
                job.reduce(step.target, payload)
            lane.path.release()
            job.received[lane.key] += 1
            if job.received[lane.key] == len(steps):
                lane.receives.popleft()
            self._finish(job, number)
        # More may be here already, read ahead where poll does not see it.
        lane.waiting = True

    def _compare(self, lane: Lane, job: Job, header: Header, part: int, num_bytes: int) -> None:
        if (header.operation, header.part, header.num_bytes) == (job.number, part, num_bytes):
            return
        raise errors.Mismatch(
            f"{self._name(lane.key[0])} sent {header.num_bytes} bytes of its collective number "
            f"{header.operation}; here number {job.number}, {job.task.name}, expects {num_bytes} "
            "bytes. All ranks must call the same collectives, in the same order, with tensors of "
            "the same size.",
            [lane.key[0]],
        )

    def _is_stale(self, path: Path, header: Header) -> bool:
        """Drops a frame of another epoch."""
        if header.epoch == self._mesh.epoch:
            return False
        if path.receive() is not None:
            path.release()
        return True

    # Messages and control.

    def _flush_messages(self, peer: int) -> None:
        path = self._mesh.messages.get(peer)
        if path is not None:
            path.flush()

    def _read_messages(self, path: Path) -> None:
        while (header := path.peek()) is not None:
            if self._is_stale(path, header):
                continue
            if not self._messages.take(path, header):
                return

    def _read_control(self, path: Path) -> None:
        while (header := path.peek()) is not None:
            payload = path.receive()
            if payload is None:
                return
            said = bytes(payload)
            path.release()
            if header.epoch != self._mesh.epoch:
                continue
            if header.kind == PING:
                path.queue(Header(PONG, self._mesh.epoch, 0, 0, 0), _NOTHING)
                path.flush()
            elif header.kind == GOODBYE:
                self._left.add(path.peer)
                if self._dead is not None and self._dead[1].peer == path.peer:
                    self._dead = None  # its data paths' ends were seen first
                    self._departed.add(path.peer)
                self._forget(path)
                return
            elif header.kind == ABORT:
                self._fail(_told(said, self._name(path.peer)))
                return

    def _forget(self, path: Path) -> None:
        descriptor = path.fileno()
        if descriptor < 0:  # closed before
            return
        with contextlib.suppress(KeyError):
            self._poll.unregister(descriptor)
        self._paths.pop(descriptor, None)
        self._interest.pop(descriptor, None)

    # Faults.

    def _lost(self, error: TransportError) -> None:
        if self._failure is not None:
            return
        name = self._name(error.peer)
        if isinstance(error, CorruptFrame):
            self._fail(CollectiveError(f"from {name}: {error}", [error.peer]))
            return
        if error.peer in self._left:
            self._departed.add(error.peer)
        elif self._dead is None:
            self._dead = (time.monotonic() + _GRACE_SECONDS, PeerGone(error.peer, str(error)))

    def _check_departed(self) -> None:
        """Who has left is missed only by operations that need them."""
        missed = self._messages.needs(self._departed)
        for job in self._jobs:
            missed = next((p for p in job.missing() if p in self._departed), missed)
        if missed is not None:
            raise errors.PeerDied(f"{self._name(missed)} has left the group", [missed])

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._dead is not None and now >= self._dead[0]:
            peer, why = self._dead[1].peer, self._dead[1]
            self._fail(errors.PeerDied(f"{self._name(peer)} died: {why}", [peer]))
            return
        if self._departed and self._pending:
            self._check_departed()
        if not self._pending or self._failure is not None:
            return
        for job in self._jobs:
            if now > job.deadline:
                missing = job.missing()
                names = ", ".join(map(self._name, missing)) or "nobody in particular"
                self._fail(
                    errors.CollectiveTimeout(
                        f"{job.task.name} took longer than {job.task.timeout:.1f} s, "
                        f"waiting for {names}",
                        missing,
                    )
                )
                return
        late = self._messages.late(now)
        if late is not None:
            self._fail(errors.CollectiveTimeout(late))
            return
        for peer, heard in self._heard.items():
            if now - heard > self._stall and peer in self._mesh.control:
                if peer in self._left:
                    continue
                what = f"{self._name(peer)} has not answered for {now - heard:.1f} s"
                self._fail(errors.PeerStalled(what, [peer]))
                return
        if now - self._pinged > self._stall / 4:
            self._pinged = now
            for peer, path in self._mesh.control.items():
                if peer not in self._left:
                    path.queue(Header(PING, self._mesh.epoch, 0, 0, 0), _NOTHING)
                    path.flush()

    def _fail(self, error: Exception) -> None:
        """Ends everything with this error and tells the peers why."""
        if self._failure is None:
            ranks = list(getattr(error, "ranks", ()))
            said = json.dumps({"kind": type(error).__name__, "what": str(error), "ranks": ranks})
            payload = memoryview(said.encode())
            for peer, path in self._mesh.control.items():
                with contextlib.suppress(TransportError, OSError):
                    path.queue(Header(ABORT, self._mesh.epoch, 0, 0, len(payload)), payload)
                    path.flush()
        self._end(error)

    def _end(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        for path in self._mesh.paths():
            self._forget(path)
            path.close()
        jobs, self._jobs = self._jobs, deque()
        self._lanes.clear()
        self._work.clear()
        self._dirty.clear()
        self._dead = None
        for job in jobs:
            job.task.done(error)
        self._messages.fail(error)


def _told(said: bytes, teller: str) -> Exception:
    """What a peer gave as its reason."""
    try:
        why = json.loads(said)
        kind = getattr(errors, str(why["kind"]), errors.Aborted)
        ranks = [int(rank) for rank in why["ranks"]]
        what = str(why["what"])
    except (ValueError, KeyError, TypeError):
        return errors.Aborted(f"{teller} gave the group up")
    if not (isinstance(kind, type) and issubclass(kind, CollectiveError)):
        kind = errors.Aborted
    return kind(f"{what} (told by {teller})", ranks)
