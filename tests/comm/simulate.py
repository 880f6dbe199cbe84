"""Runs the programs of all ranks in one process, with paths that hold nothing (rendezvous).

A frame moves only when both ends may move it: the strictest timing there is. What finishes here
finishes on any transport.
"""

from __future__ import annotations

import random

import numpy as np

from pluribus.comm.program import FIRST_SCRATCH, INPUT, OUTPUT, Kind, Program, Span


class Member:
    """One rank: its program, what of it is done, and its buffers of float64."""

    def __init__(self, program: Program, given: np.ndarray, output: np.ndarray) -> None:
        self.program = program
        self.waits = list(program.waits)
        self.done: set[int] = set()
        self.buffers = {INPUT: given, OUTPUT: output}
        for number, size in enumerate(program.scratch):
            kind = object if program.coded[number] else np.float64
            self.buffers[FIRST_SCRATCH + number] = np.full(size, np.nan).astype(kind)
        self.sent = dict.fromkeys(program.sends, 0)
        self.received = dict.fromkeys(program.receives, 0)

    def view(self, span: Span) -> np.ndarray:
        view = self.buffers[span.buffer][span.start : span.stop]
        assert view.size == span.size, span
        return view

    def finish(self, step: int) -> None:
        self.done.add(step)
        for later in self.program.blocks[step]:
            self.waits[later] -= 1

    def local(self, step: int, size: int) -> None:
        kind, _, part, target, source, _ = self.program.steps[step]
        into = self.view(target)
        if kind in (Kind.COPY, Kind.FETCH, Kind.STORE):
            into[:] = self.view(source)
        elif kind is Kind.REDUCE:
            into += self.view(source)
        elif kind is Kind.FINISH:
            into /= size
        elif kind is Kind.ENCODE:  # the codec of this simulator keeps the numbers in one object
            into[0] = self.view(source).copy()
        elif kind is Kind.DECODE:
            coded = self.view(source).reshape(part, -1)
            into[:] = sum(coded[:, 0])
        else:
            assert kind is Kind.DECODE_ADD
            into += self.view(source)[0]
        self.finish(step)


def run(members: list[Member], seed: int, lanes: int) -> dict[tuple[int, int], int]:
    """Runs all programs, choosing at random what moves next.

    Returns:
        Elements moved per (source, target).
    """
    chance = random.Random(seed)
    moved: dict[tuple[int, int], int] = {}
    while any(len(member.done) < len(member.program.steps) for member in members):
        ready = [*_local_steps(members), *_transfers(members, lanes)]
        assert ready, "nothing can move: a deadlock"
        for move in chance.sample(ready, k=chance.randint(1, len(ready))):
            if len(move) == 2:
                members[move[0]].local(move[1], len(members))
            else:
                source, target, _ = move
                size = _move(members, *move)
                moved[source, target] = moved.get((source, target), 0) + size
    return moved


def _local_steps(members: list[Member]) -> list[tuple[int, int]]:
    return [
        (rank, step)
        for rank, member in enumerate(members)
        for step, waits in enumerate(member.waits)
        if not waits and step not in member.done and member.program.steps[step].peer < 0
    ]


def _transfers(members: list[Member], lanes: int) -> list[tuple[int, int, int]]:
    ready = []
    for source, member in enumerate(members):
        for (target, lane), steps in member.program.sends.items():
            at = member.sent[target, lane]
            if at == len(steps):
                continue
            if target >= len(members):
                ready += _at_aggregator(members, source, target)
                continue
            other = members[target]
            step, partner = steps[at], other.program.receives[source, lane][at]
            if not member.waits[step] and not other.waits[partner]:
                ready.append((source, target, lane))
    return ready


def _at_aggregator(members: list[Member], source: int, target: int) -> list[tuple[int, int, int]]:
    """What an aggregator that holds nothing can do: the same chunk of all at once."""
    those = [member for member in members if (target, 0) in member.program.sends]
    at = {member.sent[target, 0] for member in those}
    free = all(not m.waits[m.program.sends[target, 0][m.sent[target, 0]]] for m in those)
    first = members[source] is those[0]
    return [(source, target, 0)] if len(at) == 1 and free and first else []


def _sum_up(members: list[Member], target: int) -> int:
    those = [member for member in members if (target, 0) in member.program.sends]
    at = those[0].sent[target, 0]
    sends = [member.program.steps[member.program.sends[target, 0][at]] for member in those]
    total = sum(m.view(send.source).copy() for m, send in zip(those, sends, strict=True))
    for member in those:
        member.finish(member.program.sends[target, 0][at])
        receive = member.program.receives[target, 0][at]
        assert not member.waits[receive]
        member.view(member.program.steps[receive].target)[:] = total
        member.finish(receive)
        member.sent[target, 0] += 1
    return sends[0].source.size


def _move(members: list[Member], source: int, target: int, lane: int) -> int:
    if target >= len(members):
        return _sum_up(members, target)
    one, other = members[source], members[target]
    at = one.sent[target, lane]
    send, receive = one.program.sends[target, lane][at], other.program.receives[source, lane][at]
    what, into = one.program.steps[send], other.program.steps[receive]
    assert what.part == into.part
    if into.kind is Kind.RECEIVE:
        other.view(into.target)[:] = one.view(what.source)
    else:
        other.view(into.target)[:] += one.view(what.source)
    one.sent[target, lane] += 1
    other.received[source, lane] += 1
    one.finish(send)
    other.finish(receive)
    return what.source.size
