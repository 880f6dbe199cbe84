"""The timeline of a 1F1B pipeline in C; `simulate` on its action list is the twin.

Planning times thousands of pipelines of which only the ends matter, so that the actions themselves
are made when somebody asks for them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluribus.core import native
from pluribus.predict.schedule import Action, ActionKind, Structure, stage_actions
from pluribus.predict.timeline import Course, Durations, Lane

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, native.Signature] = {
    "pluribus_one_f_one_b": (
        ctypes.c_int,
        (_INT, _INT, *[_POINTER] * 4, ctypes.c_int, ctypes.c_int, _POINTER, _POINTER),
    ),
}


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.load(Path(__file__).with_name("one_f_one_b.c"), _SIGNATURES)


@dataclass(frozen=True)
class StageActions(Sequence[Action]):
    """A stage's actions, made on demand."""

    structure: Structure
    stage: int
    length: int

    @cached_property
    def _actions(self) -> tuple[Action, ...]:
        return stage_actions(self.structure, self.stage)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        return self._actions[index]

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions)


def one_f_one_b_courses(
    structure: Structure, lanes: Sequence[Lane], durations: Durations
) -> dict[Lane, Course] | None:
    """What `simulate` gives for a pipeline that begins at zero; None where it has to be asked:
    there is no compiler, or the pipeline is no 1F1B of one chunk."""
    library = _library()
    if library is None or structure.schedule != "1f1b" or structure.chunks > 1:
        return None
    size, count = structure.num_stages, structure.micro_batches
    forward, backward = (
        np.array([_first(durations.compute[lane, kind]) for lane in lanes])
        for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)
    )
    down = np.array([durations.transfer(lanes[s], lanes[s + 1]) for s in range(size - 1)])
    up = np.array([durations.transfer(lanes[s + 1], lanes[s]) for s in range(size - 1)])
    ends, offsets = _ends(
        library, count, (forward, backward, down, up), durations.blocking, durations.rendezvous
    )
    return {
        lane: Course(
            StageActions(structure, s, int(offsets[s + 1] - offsets[s])),
            0.0,
            ends[offsets[s] : offsets[s + 1]],
        )
        for s, lane in enumerate(lanes)
    }


def last_backward(
    forward: NDArray[np.float64],
    backward: NDArray[np.float64],
    hops: NDArray[np.float64],
    count: int,
    *,
    blocking: bool = False,
    rendezvous: bool = False,
) -> float | None:
    """Seconds until a 1F1B pipeline's first stage has done its last backward; None where there is
    no compiler.

    Args:
        forward, backward: [S] seconds of one micro-batch on each stage.
        hops: [S − 1] seconds of a message to the next stage and its answer, each half of them.
        count: micro-batches.
        blocking, rendezvous: see `Durations`.
    """
    library = _library()
    if library is None:
        return None
    way = hops / 2
    ends, offsets = _ends(library, count, (forward, backward, way, way), blocking, rendezvous)
    return float(ends[offsets[1] - 1])


def _ends(
    library: ctypes.CDLL,
    count: int,
    seconds: tuple[NDArray[np.float64], ...],
    blocking: bool,
    rendezvous: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(when each action ends, stage after stage; [S + 1] where each stage's begin).

    Args:
        seconds: [S] of forwards and of backwards, [S − 1] of messages there and back.
    """
    forward, backward, down, up = (np.ascontiguousarray(each) for each in seconds)
    stages = np.arange(len(forward))
    # A forward and a backward for each micro-batch, each with a message per neighbour.
    lengths = 2 * count * (1 + (stages > 0) + (stages < len(stages) - 1))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ends = np.empty(offsets[-1])
    failed = library.pluribus_one_f_one_b(
        len(forward), count, forward.ctypes.data, backward.ctypes.data, down.ctypes.data,
        up.ctypes.data, blocking, rendezvous, offsets.ctypes.data, ends.ctypes.data,
    )  # fmt: skip
    assert not failed, "no memory for a timeline"
    return ends, offsets


def _first(seconds: float | tuple[float, ...]) -> float:
    return seconds[0] if isinstance(seconds, tuple) else seconds
