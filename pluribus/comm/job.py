"""A collective that is under way: its program's state on this rank, and its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pluribus.comm.codecs.base import Codec
from pluribus.comm.devices.copies import Copies
from pluribus.comm.errors import SilentCorruption
from pluribus.comm.native.crc32c import crc32c
from pluribus.comm.program import DIGEST_BYTES, FIRST_SCRATCH, Kind, Program, Span, Step
from pluribus.comm.reduce import Reduction
from pluribus.comm.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Task:
    """What to run.

    Attributes:
        name: for messages, e.g. ``"all_reduce of 4 MiB"``.
        given, output: flat tensors of one dtype: buffers INPUT and OUTPUT. On the CPU, unless the
            program is staged.
        members: of the group, for an average.
        residual: float32 [program.residuals], or None without error feedback.
        scratch: where the program's own buffers come from.
        copies: between device and host, if input and output are a device's.
        done: called once, from the engine's thread: with None, or the error.
    """

    name: str
    program: Program
    given: torch.Tensor
    output: torch.Tensor
    members: int
    reduction: Reduction | None
    codec: Codec | None
    residual: torch.Tensor | None
    scratch: Scratch
    timeout: float
    done: Callable[[Exception | None], None]
    copies: Copies | None = None


class Job:
    """A task in the engine.

    Attributes:
        number: of the collective in its group; the same on every rank.
        deadline: on the monotonic clock.
        left: steps that are not done.
        sent, received: steps of each (peer, lane) that have been queued, and received.
    """

    def __init__(self, task: Task, number: int, deadline: float) -> None:
        program = task.program
        self.task = task
        self.number = number
        self.deadline = deadline
        self.steps = program.steps
        self.waits = list(program.waits)
        self.left = len(program.steps)
        self.sent = dict.fromkeys(program.sends, 0)
        self.received = dict.fromkeys(program.receives, 0)
        dtype = task.output.dtype
        staging = None if task.copies is None else program.staging - FIRST_SCRATCH
        self._scratch = {
            number: task.scratch.take(size if coded else size * dtype.itemsize)
            for number, (size, coded) in enumerate(zip(program.scratch, program.coded, strict=True))
            if number != staging
        }
        scratch = [
            buffer if program.coded[number] else buffer.view(dtype)
            for number, buffer in self._scratch.items()
        ]
        if task.copies is not None and staging is not None:
            num_bytes = program.scratch[staging] * dtype.itemsize
            scratch.insert(staging, task.copies.memory(num_bytes).view(dtype))
        self._tensors: Sequence[torch.Tensor] = [task.given, task.output, *scratch]
        self._bytes = [
            memoryview(t.view(torch.uint8).numpy() if t.device.type == "cpu" else b"")
            for t in self._tensors
        ]
        self._lengths: dict[Span, int] = {}  # of coded spans that end before they must
        self._widths = [tensor.element_size() for tensor in self._tensors]

    def tensor(self, span: Span) -> torch.Tensor:
        return self._tensors[span.buffer][span.start : span.stop]

    def bytes(self, span: Span) -> memoryview:
        width = self._widths[span.buffer]
        return self._bytes[span.buffer][span.start * width : span.stop * width]

    def payload(self, span: Span) -> memoryview:
        """The memory of a span as far as it says something."""
        return self.bytes(span)[: self._lengths.get(span)]

    def place(self, span: Span, num_bytes: int) -> memoryview | None:
        """Where a frame of this length for a span belongs; None if it does not fit it."""
        whole = self.bytes(span)
        if num_bytes != len(whole):
            codec, coded = self.task.codec, span.buffer - FIRST_SCRATCH
            varies = codec is not None and codec.varies and coded >= 0
            if not (varies and self.task.program.coded[coded] and num_bytes < len(whole)):
                return None
            self._lengths[span] = num_bytes
        return whole[:num_bytes]

    def reduce(self, target: Span, payload: memoryview) -> None:
        """Target op= a chunk as it came from a path."""
        reduction = self.task.reduction
        assert reduction is not None
        into = self.tensor(target)
        reduction.combine(into, torch.frombuffer(payload, dtype=into.dtype))

    def run(self, step: Step) -> None:
        """Does a local step."""
        kind, _, part, target, source, at = step
        task = self.task
        if kind is Kind.COPY:
            self.bytes(target)[:] = self.bytes(source)
        elif kind is Kind.REDUCE:
            self.reduce(target, self.bytes(source))
        elif kind is Kind.FINISH:
            if task.reduction is not None and task.reduction.finish is not None:
                task.reduction.finish(self.tensor(target), task.members)
        elif kind is Kind.ENCODE:
            assert task.codec is not None
            values = self.tensor(source).float()
            residual = None
            if task.residual is not None:
                residual = task.residual[at : at + source.size]
            task.codec.encode(values, self.tensor(target), residual)
            if task.codec.varies:
                self._lengths[target] = task.codec.length(self.tensor(target), source.size)
        elif kind is Kind.DIGEST:
            whole = memoryview(task.output.view(torch.uint8).numpy())
            self.bytes(target)[:] = crc32c(whole).to_bytes(DIGEST_BYTES, "little")
        elif kind is Kind.COMPARE:
            compare_digests(self.bytes(source), task.name)
        elif kind is Kind.DECODE_ADD:
            self._decode(self.tensor(target), self.tensor(source), 1, add=True)
        else:
            self._decode(self.tensor(target), self.tensor(source), part)

    def _decode(
        self, into: torch.Tensor, coded: torch.Tensor, parts: int, add: bool = False
    ) -> None:
        codec = self.task.codec
        assert codec is not None
        values = into if into.dtype is torch.float32 else torch.empty(len(into))
        if parts == 2:
            codec.decode_sum(*coded.chunk(2), values)
        else:
            assert parts == 1
            codec.decode(coded, values, add and values is into)
        if values is not into:
            into.add_(values) if add else into.copy_(values)

    def begin(self, step: Step, done: Callable[[Exception | None], None]) -> None:
        """Starts a copy between device and host; ``done`` is called in the engine's thread."""
        copies = self.task.copies
        assert copies is not None
        copy = copies.fetch if step.kind is Kind.FETCH else copies.store
        copy(self.tensor(step.target), self.tensor(step.source), done)

    def done_with(self, step: int) -> list[int]:
        """Marks a step; returns those that may run now."""
        self.left -= 1
        ready = []
        for later in self.task.program.blocks[step]:
            self.waits[later] -= 1
            if not self.waits[later]:
                ready.append(later)
        return ready

    def end(self) -> None:
        """All its steps are done: says so, and gives its scratch memory back."""
        for buffer in self._scratch.values():
            self.task.scratch.give_back(buffer)
        self.task.done(None)

    def missing(self) -> list[int]:
        """Peers from whom something must still come."""
        receives = self.task.program.receives
        return sorted(
            {key[0] for key, steps in receives.items() if self.received[key] < len(steps)}
        )


def compare_digests(digests: memoryview, name: str) -> None:
    """Names the ranks whose checksum differs from the majority's.

    Raises:
        SilentCorruption: not all are equal; without a majority all are under suspicion.
    """
    each = [bytes(digests[at : at + DIGEST_BYTES]) for at in range(0, len(digests), DIGEST_BYTES)]
    counts = Counter(each)
    if len(counts) == 1:
        return
    (common, votes), *_ = counts.most_common()
    odd = [rank for rank, digest in enumerate(each) if digest != common]
    if votes * 2 <= len(each):
        odd = list(range(len(each)))
    names = ", ".join(map(str, odd))
    raise SilentCorruption(f"after {name}, rank {names} of the group has other bits", odd)
