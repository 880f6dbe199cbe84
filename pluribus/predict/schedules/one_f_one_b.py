"""1F1B, or PipeDream-Flush (Narayanan et al. 2021, arXiv 2006.09503 §2.2)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from pluribus.predict.schedules.base import Action, ActionKind, Order


def one_f_one_b(num_stages: int, micro_batches: int) -> Order:
    """The passes of each stage: stage s of S runs min(S − 1 − s, M) forwards ahead."""
    return tuple(one_f_one_b_stage(num_stages, micro_batches, s) for s in range(num_stages))


def one_f_one_b_stage(num_stages: int, micro_batches: int, stage: int) -> tuple[Action, ...]:
    """The passes of one stage."""
    forwards, backwards = _all_passes(micro_batches)
    return alternate(forwards, backwards, num_stages - 1 - stage)


@functools.lru_cache(maxsize=8)
def _all_passes(micro_batches: int) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """Stages share the objects."""
    forwards = tuple(Action(ActionKind.FORWARD, m) for m in range(micro_batches))
    return forwards, tuple(Action(ActionKind.BACKWARD, m) for m in range(micro_batches))


def alternate(
    forwards: Sequence[Action], backwards: Sequence[Action], ahead: int
) -> tuple[Action, ...]:
    """``ahead`` forwards, then one forward and one backward in turn."""
    ahead = min(ahead, len(forwards))
    passes = list(forwards[:ahead])
    for number, backward in enumerate(backwards):
        passes += forwards[ahead + number : ahead + number + 1]
        passes.append(backward)
    return tuple(passes)
