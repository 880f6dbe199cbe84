"""Puts copies between a chip and the host into a program, so that they overlap with sending.

The algorithm stays as it is. Each piece is fetched into a slot of staging memory just before its
first use, used there, and stored from there when its last value is known; then the slot serves
another piece. All new waits point backward in program order, so a program still always ends,
however few slots there are. Pure, as the programs are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pluribus.comm.program import FIRST_SCRATCH, INPUT, OUTPUT, Kind, Program, Span, Step

_READS_TARGET = (Kind.RECEIVE_REDUCE, Kind.REDUCE, Kind.FINISH, Kind.DECODE_ADD)


@dataclass(eq=False)
class _Slot:
    """Part of the staging buffer; ``freed``: steps that must be done before it is used again."""

    start: int
    size: int
    freed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Value:
    """A span's contents from when they appear on the host until they are overwritten or no longer
    used; adding to them goes on with the same value.

    Attributes:
        fetched: whether they come from the device.
        written: whether a step changes them.
        last: the last step that uses them, in the old numbers.
        steps: that use them, in the new numbers; the fetch included.
    """

    span: Span
    fetched: bool
    written: bool = False
    last: int = -1
    slot: _Slot | None = None
    fetch: int = -1
    writer: int = -1
    steps: set[int] = field(default_factory=set)


def staged(program: Program, room: int) -> Program:
    """The same program for an input and output in device memory.

    Args:
        room: elements of staging memory to use before using slots again. More is taken where a
            program keeps more than that at a time.

    Returns:
        One more scratch buffer, ``staging``; FETCH and STORE are the only steps that touch device
        memory.
    """
    uses, final = _values(program)
    return _Rewriting(program, uses, final, room).run()


def _touched(step: Step) -> list[tuple[Span, bool, bool]]:
    """(span, reads, writes) of a step, device buffers only."""
    touched = []
    if step.source.buffer in (INPUT, OUTPUT):
        touched.append((step.source, True, False))
    if step.target.buffer in (INPUT, OUTPUT):
        touched.append((step.target, step.kind in _READS_TARGET, True))
    return touched


def _values(program: Program) -> tuple[list[list[_Value]], set[_Value]]:
    """The values each step uses, and those that are a span's last."""
    now: dict[Span, _Value] = {}
    uses: list[list[_Value]] = []
    for number, step in enumerate(program.steps):
        assert step.kind not in (Kind.DIGEST, Kind.COMPARE), "checksums read the host's memory"
        here = []
        for span, reads, writes in _touched(step):
            if span not in now or not reads:
                now[span] = _Value(span, fetched=reads)
            value = now[span]
            value.written |= writes
            value.last = number
            here.append(value)
        uses.append(here)
    return uses, {value for value in now.values() if value.span.buffer == OUTPUT and value.written}


class _Rewriting:
    """Writes the new program, step by step."""

    def __init__(
        self, program: Program, uses: list[list[_Value]], final: set[_Value], room: int
    ) -> None:
        self._program = program
        self._uses = uses
        self._final = final
        self._room = room
        self._staging = FIRST_SCRATCH + len(program.scratch)
        self._total = 0
        # Apart: all_to_all, written down from each rank's side, must receive while it still sends.
        self._free: dict[int, deque[_Slot]] = {INPUT: deque(), OUTPUT: deque()}
        self._steps: list[Step] = []
        self._before: list[set[int]] = []

    def run(self) -> Program:
        old = self._program
        earlier: list[list[int]] = [[] for _ in old.steps]
        for number, later in enumerate(old.blocks):
            for other in later:
                earlier[other].append(number)
        renumbered: list[int] = []
        for number, step in enumerate(old.steps):
            before = {renumbered[other] for other in earlier[number]}
            for value in self._uses[number]:
                before |= self._bring(value)
            renumbered.append(self._add(self._renamed(step, self._uses[number]), before))
            for value in self._uses[number]:
                value.steps.add(renumbered[-1])
                if value.span == step.target:
                    value.writer = renumbered[-1]
                if value.last == number:
                    self._leave(value)
        blocks: list[list[int]] = [[] for _ in self._steps]
        for number, before in enumerate(self._before):
            for other in before:
                blocks[other].append(number)
        return Program(
            tuple(self._steps),
            tuple(len(before) for before in self._before),
            tuple(map(tuple, blocks)),
            (*old.scratch, self._total),
            (*old.coded, False),
            old.residuals,
            {key: tuple(renumbered[step] for step in steps) for key, steps in old.sends.items()},
            {key: tuple(renumbered[step] for step in steps) for key, steps in old.receives.items()},
            self._staging,
        )

    def _bring(self, value: _Value) -> set[int]:
        """What a step that uses the value must wait for beside its own waits."""
        before: set[int] = set()
        if value.slot is None:
            value.slot = self._take(value.span)
            before = set(value.slot.freed)
            if value.fetched:
                place = self._place(value)
                value.fetch = self._add(Step(Kind.FETCH, -1, 0, place, value.span), before)
                value.steps.add(value.fetch)
        return {value.fetch} if value.fetched else before

    def _leave(self, value: _Value) -> None:
        """The value's last step is written down."""
        assert value.slot is not None
        if value in self._final:
            store = Step(Kind.STORE, -1, 0, value.span, self._place(value))
            value.steps.add(self._add(store, {value.writer}))
        value.slot.freed = value.steps
        self._free[value.span.buffer].append(value.slot)

    def _take(self, span: Span) -> _Slot:
        size, free = span.size, self._free[span.buffer]
        if self._total + size > self._room:
            for slot in free:
                if slot.size >= size:
                    free.remove(slot)
                    return slot
        self._total += size
        return _Slot(self._total - size, size)

    def _place(self, value: _Value) -> Span:
        assert value.slot is not None
        return Span(self._staging, value.slot.start, value.slot.start + value.span.size)

    def _renamed(self, step: Step, values: list[_Value]) -> Step:
        place = {value.span: self._place(value) for value in values}
        return step._replace(
            target=place.get(step.target, step.target), source=place.get(step.source, step.source)
        )

    def _add(self, step: Step, before: set[int]) -> int:
        self._steps.append(step)
        self._before.append(before)
        return len(self._steps) - 1
