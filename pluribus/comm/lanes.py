"""Runs programs over lanes: frames out and in, in program order, several collectives at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial

from pluribus.comm import errors
from pluribus.comm.job import Job, Task
from pluribus.comm.mesh import Mesh, drop_stale, end_all
from pluribus.comm.program import Kind
from pluribus.comm.transports.base import DATA, Header, Path

_FRAMES_PER_TURN = 8


class Lane:
    """A path with what goes over it next.

    Attributes:
        key: (peer, number of the lane).
        sends, receives: jobs with frames left for it, in order.
        under_way: the job of each frame that the path has not sent yet.
        waiting: whether there may be a frame at its head that nobody has taken.
    """

    __slots__ = ("key", "path", "receives", "sends", "under_way", "waiting")

    def __init__(self, key: tuple[int, int], path: Path) -> None:
        self.key = key
        self.path = path
        self.sends: deque[Job] = deque()
        self.receives: deque[Job] = deque()
        self.under_way: deque[Job] = deque()
        self.waiting = False


class Lanes:
    """The collectives of one epoch. Only the engine's thread calls it.

    Collectives are numbered as they start, alike on all ranks, and end from some number on when a
    rank cannot end that one: those before go on, and nothing that was sent for them is lost.

    Attributes:
        all: the lanes.
        jobs: what is under way, oldest first.
    """

    def __init__(self, mesh: Mesh, name: Callable[[int], str]) -> None:
        self._epoch = mesh.epoch
        self._name = name
        self._number = 0
        self._last: tuple[int, Exception] | None = None  # what ends from which number on
        self._work: deque[tuple[Job, int]] = deque()
        self._dirty: dict[Lane, None] = {}
        self._lanes = {
            (peer, number): Lane((peer, number), path)
            for peer, paths in mesh.data.items()
            for number, path in enumerate(paths)
        }
        self._width = {peer: len(paths) for peer, paths in mesh.data.items()}
        self.all = list(self._lanes.values())
        self.jobs: deque[Job] = deque()

    @property
    def following(self) -> int:
        """Number of the first collective that has not started here."""
        return self._number + 1

    def start(self, task: Task) -> None:
        """Takes a task in; `settle` sets it going."""
        self._number += 1
        if self._last is not None and self._number >= self._last[0]:
            task.done(self._last[1])
            return
        job = Job(task, self._number, time.monotonic() + task.timeout)
        if not job.left:
            task.done(None)
            return
        self.jobs.append(job)
        for key in job.sent:
            self._lanes[key].sends.append(job)
            self._dirty[self._lanes[key]] = None
        for key in job.received:
            self._lanes[key].receives.append(job)
        for step, waits in enumerate(task.program.waits):
            if not waits and job.steps[step].peer < 0:
                self._work.append((job, step))

    def settle(self) -> None:
        """Runs what is ready until nothing is that is here."""
        while self._work or self._dirty:
            while self._work:
                self._ready(*self._work.popleft())
            if self._dirty:
                self._queue_frames(self._dirty.popitem()[0])

    def readable(self) -> list[Lane]:
        """The lanes on which something may be here that has its place now."""
        return [lane for lane in self.all if lane.waiting and self._can_use(lane)]

    def read(self, lane: Lane) -> None:
        """Uses what has come on a lane, a few frames at a time.

        Raises:
            TransportError: that was all.
        """
        lane.waiting = False
        for _ in range(_FRAMES_PER_TURN):
            header = lane.path.peek()
            if header is None:
                return
            if drop_stale(lane.path, self._epoch):
                continue
            if not self._can_use(lane):
                break
            job = lane.receives[0]
            steps = job.task.program.receives[lane.key]
            number = steps[job.received[lane.key]]
            step = job.steps[number]
            place = job.place(step.target, header.num_bytes)
            if (header.operation, header.part) != (job.number, step.part) or place is None:
                raise self._mismatch(lane, job, header, job.bytes(step.target).nbytes)
            into = place if step.kind is Kind.RECEIVE else None
            payload = lane.path.receive(into)
            if payload is None:
                return
            if into is None:
                job.reduce(step.target, payload)
            lane.path.release()
            job.received[lane.key] += 1
            if job.received[lane.key] == len(steps):
                lane.receives.popleft()
            self._finish(job, number)
        # Held up, or more is here already, read ahead where poll does not see it.
        lane.waiting = True

    def late(self, now: float) -> errors.CollectiveTimeout | None:
        """The error of a job that has taken too long."""
        for job in self.jobs:
            if now > job.deadline:
                missing = self._silent(job)
                names = ", ".join(map(self._name, missing)) or "nobody in particular"
                what = f"{job.task.name} took longer than {job.task.timeout:.1f} s"
                return errors.CollectiveTimeout(f"{what}, waiting for {names}", missing)
        return None

    def _silent(self, job: Job) -> list[int]:
        """Of the peers a job waits for, those that sent nothing of it: others only wait too."""
        heard = {key[0] for key, count in job.received.items() if count}
        heard |= {lane.key[0] for lane in self.all if lane.waiting}
        missing = job.missing()
        return [peer for peer in missing if peer not in heard] or missing

    def needs(self, left: Collection[int], ended: Callable[[Path], bool]) -> tuple[int, int] | None:
        """Number of the first collective that one of these peers, which have left, is missed by,
        and that peer: there is more to send to it, or more must come than its path brought."""
        found = []
        for lane in self.all:
            peer = next(iter(left), -1) if lane.path.needs_all else lane.path.peer
            if peer not in left:
                continue
            jobs = [queue[0] for queue in (lane.under_way, lane.sends) if queue]
            if lane.receives and not lane.waiting and (ended(lane.path) or lane.path.needs_all):
                jobs.append(lane.receives[0])
            found += [(job.number, peer) for job in jobs]
        return min(found, default=None)

    def cancel(self, number: int, error: Exception) -> None:
        """Ends collectives from a number on, once those before have ended."""
        if self._last is None or number < self._last[0]:
            self._last = number, error
        self.end_cancelled()

    def end_cancelled(self) -> None:
        """Ends what `cancel` could not end yet."""
        if self._last is None or not self.jobs or self.jobs[0].number < self._last[0]:
            return
        for lane in self.all:
            lane.path.withdraw()  # all that must still go out is of what ends now
        self.fail(self._last[1])

    def fail(self, error: Exception) -> None:
        """Ends all that is under way."""
        jobs, self.jobs = self.jobs, deque()
        self._work.clear()
        self._dirty.clear()
        for lane in self.all:
            lane.sends.clear()
            lane.receives.clear()
            lane.under_way.clear()
        end_all([job.task.done for job in jobs], error)

    def _ready(self, job: Job, number: int) -> None:
        """A step waits for nothing any more."""
        step = job.steps[number]
        if step.kind in (Kind.FETCH, Kind.STORE):
            job.begin(step, partial(self._copied, job, number))
        elif step.peer < 0:
            job.run(step)
            self._finish(job, number)
        elif step.kind is Kind.SEND:
            self._dirty[self._lanes[step.peer, step.part % self._width[step.peer]]] = None

    def _copied(self, job: Job, number: int, error: Exception | None) -> None:
        """A copy has ended, perhaps after its job."""
        if job not in self.jobs:
            return
        if error is not None:
            raise error
        self._finish(job, number)

    def _finish(self, job: Job, number: int) -> None:
        for ready in job.done_with(number):
            self._work.append((job, ready))
        if not job.left and job in self.jobs:
            self.jobs.remove(job)
            job.end()

    def _queue_frames(self, lane: Lane) -> None:
        """Frames leave in program order, those of the next job after all of this one's."""
        while lane.sends:
            job = lane.sends[0]
            steps = job.task.program.sends[lane.key]
            at = job.sent[lane.key]
            while at < len(steps) and not job.waits[steps[at]]:
                number = steps[at]
                step = job.steps[number]
                payload = job.payload(step.source)
                header = Header(DATA, self._epoch, job.number, step.part, len(payload))
                at += 1
                job.sent[lane.key] = at
                lane.under_way.append(job)
                lane.path.queue(header, payload, partial(self._sent, lane, job, number))
            if at < len(steps):
                break
            lane.sends.popleft()
        lane.path.flush()

    def _sent(self, lane: Lane, job: Job, number: int) -> None:
        lane.under_way.popleft()
        self._finish(job, number)

    def _can_use(self, lane: Lane) -> bool:
        if not lane.receives:
            return False
        job = lane.receives[0]
        return not job.waits[job.task.program.receives[lane.key][job.received[lane.key]]]

    def _mismatch(self, lane: Lane, job: Job, header: Header, num_bytes: int) -> errors.Mismatch:
        return errors.Mismatch(
            f"{self._name(lane.key[0])} sent {header.num_bytes} bytes of its collective number "
            f"{header.operation}; here number {job.number}, {job.task.name}, expects {num_bytes} "
            "bytes. All ranks must call the same collectives, in the same order, with tensors of "
            "the same size.",
            [lane.key[0]],
        )
