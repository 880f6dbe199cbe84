"""A collective as a small program: what one rank sends, receives and adds, chunk by chunk.

An algorithm describes the whole group's moves in one order; `Builder` keeps the steps of one rank
and finds what each must wait for (the last write of what it reads, the last reads of what it
overwrites). Two rules make any program finish whatever the timing:

* a rank's frames to a peer leave in program order, per path;
* a rank takes a peer's frames in that same order, each when its step may run.

The earliest unfinished step of the whole group then always can run: all it waits for is earlier
in the program, and so is every frame before its own on the path. Sums are added in program order
too, so that a result does not depend on which frame came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What a step does with its target and source spans."""

    SEND = 0  # source to the peer
    RECEIVE = 1  # the peer's chunk to target
    RECEIVE_REDUCE = 2  # target op= the peer's chunk
    COPY = 3  # target = source
    REDUCE = 4  # target op= source
    FINISH = 5  # what ends the reduction of target: dividing, for an average
    ENCODE = 6  # coded target = source, and what was lost stays in the residual
    DECODE = 7  # target = coded source, or the sum of several that lie side by side
    DECODE_ADD = 8  # target += coded source
    DIGEST = 9  # target = checksum of the whole OUTPUT
    COMPARE = 10  # the checksums in source must be equal
    FETCH = 11  # target on the host = source on the device; both end some time after they begin
    STORE = 12  # target on the device = source on the host


class Span(NamedTuple):
    """Part of a buffer: elements [start, stop), or bytes of a coded buffer."""

    buffer: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


INPUT, OUTPUT = 0, 1  # one and the same for a collective in place
FIRST_SCRATCH = 2
DIGEST_BYTES = 8


class Step(NamedTuple):
    """One step of one rank.

    Attributes:
        peer: rank at the other end; -1 for a local step.
        part: number of the frame between the two ranks; of a DECODE, how many it adds up.
        residual: where the residual of an ENCODE lies in the collective's residual.
    """

    kind: Kind
    peer: int
    part: int
    target: Span
    source: Span
    residual: int = -1


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of one rank.

    Attributes:
        steps: in program order.
        waits: per step, how many earlier steps it waits for.
        blocks: per step, the later steps that wait for it.
        scratch: elements of each scratch buffer, from number 2 on.
        coded: which scratch buffers hold coded bytes instead of elements.
        residuals: elements of error feedback.
        sends, receives: steps per (peer, lane), in order.
        staging: number of the buffer that copies to and from the device go through; -1: none, the
            input and output are the host's.
    """

    steps: tuple[Step, ...]
    waits: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    scratch: tuple[int, ...]
    coded: tuple[bool, ...]
    residuals: int
    sends: dict[tuple[int, int], tuple[int, ...]]
    receives: dict[tuple[int, int], tuple[int, ...]]
    staging: int = -1

    @property
    def sent_to(self) -> dict[int, int]:
        """Elements (bytes of coded spans) this rank sends, by peer."""
        total: dict[int, int] = {}
        for step in self.steps:
            if step.kind is Kind.SEND:
                total[step.peer] = total.get(step.peer, 0) + step.source.size
        return total


_NOTHING = Span(-1, 0, 0)


class Builder:
    """Collects one rank's steps out of a description of everybody's.

    Args:
        rank: whose steps to keep.
        lanes: paths to each peer; frames take them in turn.

    Spans that overlap must be equal: an algorithm cuts its buffers once and moves whole pieces.
    """

    def __init__(self, rank: int, lanes: int = 1) -> None:
        self.rank = rank
        self._lanes = lanes
        self._steps: list[Step] = []
        self._waits: list[int] = []
        self._blocks: list[list[int]] = []
        self._scratch: list[int] = []
        self._coded: list[bool] = []
        self._residuals = 0
        self._writer: dict[Span, int] = {}
        self._readers: dict[Span, list[int]] = {}
        self._parts: dict[tuple[int, int], int] = {}
        self._sends: dict[tuple[int, int], list[int]] = {}
        self._receives: dict[tuple[int, int], list[int]] = {}

    def scratch(self, size: int, coded: bool = False) -> int:
        """A buffer of its own on every rank: ``size`` elements, or bytes if coded."""
        self._scratch.append(size)
        self._coded.append(coded)
        return FIRST_SCRATCH + len(self._scratch) - 1

    def residual(self, size: int) -> int:
        """Room for the residual of ``size`` encoded elements; returns its start."""
        self._residuals += size
        return self._residuals - size

    def transfer(
        self, source: int, target: int, read: Span, write: Span, reduce: bool = False
    ) -> None:
        """``source`` sends ``read``; ``target`` puts it to ``write`` or reduces it into it.

        Empty spans and a rank's transfers to itself move nothing over a path.
        """
        assert read.size == write.size, (read, write)
        if not read.size:
            return
        if source == target:
            self.local(source, Kind.REDUCE if reduce else Kind.COPY, write, read)
        elif source == self.rank:
            part = self._part(source, target)
            number = self._add(Step(Kind.SEND, target, part, _NOTHING, read), (read,), ())
            self._sends.setdefault((target, part % self._lanes), []).append(number)
        elif target == self.rank:
            part = self._part(source, target)
            kind = Kind.RECEIVE_REDUCE if reduce else Kind.RECEIVE
            reads = (write,) if reduce else ()
            number = self._add(Step(kind, source, part, write, _NOTHING), reads, (write,))
            self._receives.setdefault((source, part % self._lanes), []).append(number)

    def exchange(self, rank: int, place: int, span: Span) -> None:
        """Sends ``span`` to what stands behind the ranks as peer ``place``, and takes in its stead
        what comes back. Such a peer has one path, whatever the lanes to the ranks."""
        if rank != self.rank or not span.size:
            return
        part = self._part(rank, place)
        number = self._add(Step(Kind.SEND, place, part, _NOTHING, span), (span,), ())
        self._sends.setdefault((place, 0), []).append(number)
        number = self._add(Step(Kind.RECEIVE, place, part, span, _NOTHING), (), (span,))
        self._receives.setdefault((place, 0), []).append(number)

    def local(self, rank: int, kind: Kind, target: Span, source: Span = _NOTHING) -> None:
        """A step without a peer; ``target`` equal to ``source`` copies nothing."""
        if rank != self.rank or not target.size or (kind is Kind.COPY and target == source):
            return
        adds = kind in (Kind.REDUCE, Kind.FINISH, Kind.DECODE_ADD)
        reads = [span for span in (source,) if span.buffer >= 0] + ([target] if adds else [])
        residual = self.residual(source.size) if kind is Kind.ENCODE else -1
        self._add(Step(kind, -1, 0, target, source, residual), reads, (target,))

    def finish(self, rank: int, target: Span) -> None:
        """Ends the reduction of ``target`` on one rank."""
        self.local(rank, Kind.FINISH, target)

    def decode(self, rank: int, target: Span, coded: Sequence[Span]) -> None:
        """``target`` becomes the sum of coded spans of one size that lie side by side."""
        if rank == self.rank and target.size:
            whole = Span(coded[0].buffer, coded[0].start, coded[-1].stop)
            self._add(Step(Kind.DECODE, -1, len(coded), target, whole), coded, (target,))

    def digest(self, target: Span) -> None:
        """This rank's checksum of OUTPUT as it is after all steps so far."""
        reads = [span for span in self._writer if span.buffer == OUTPUT]
        self._add(Step(Kind.DIGEST, -1, 0, target, _NOTHING), reads, (target,))

    def compare(self, digests: Sequence[Span]) -> None:
        """Fails on this rank unless all ranks' checksums are equal; they lie side by side."""
        whole = Span(digests[0].buffer, digests[0].start, digests[-1].stop)
        self._add(Step(Kind.COMPARE, -1, 0, _NOTHING, whole), digests, ())

    def build(self) -> Program:
        return Program(
            tuple(self._steps),
            tuple(self._waits),
            tuple(map(tuple, self._blocks)),
            tuple(self._scratch),
            tuple(self._coded),
            self._residuals,
            {key: tuple(steps) for key, steps in self._sends.items()},
            {key: tuple(steps) for key, steps in self._receives.items()},
        )

    def _part(self, source: int, target: int) -> int:
        part = self._parts.get((source, target), 0)
        self._parts[source, target] = part + 1
        return part

    def _add(self, step: Step, reads: Sequence[Span], writes: Sequence[Span]) -> int:
        number = len(self._steps)
        before = set()
        for span in reads:
            if span in self._writer:
                before.add(self._writer[span])
            self._readers.setdefault(span, []).append(number)
        for span in writes:
            if span in self._writer:
                before.add(self._writer[span])
            before.update(self._readers.pop(span, ()))
            self._writer[span] = number
        before.discard(number)
        self._steps.append(step)
        self._waits.append(len(before))
        self._blocks.append([])
        for earlier in before:
            self._blocks[earlier].append(number)
        return number


def cut(span: Span, parts: int, align: int = 1) -> list[Span]:
    """``span`` in ``parts`` pieces of about equal size; inner cuts at multiples of ``align``."""
    at = [span.start + span.size * part // parts // align * align for part in range(parts)]
    return [
        Span(span.buffer, start, stop) for start, stop in zip(at, [*at[1:], span.stop], strict=True)
    ]


def chunks(span: Span, elements: int, align: int = 1) -> list[Span]:
    """``span`` in pieces of at most about ``elements``; at least one."""
    return cut(span, max(1, -(-span.size // max(1, elements))), align)
