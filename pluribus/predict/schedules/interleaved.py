"""Interleaved 1F1B: v chunks of layers per stage (Narayanan et al. 2021, arXiv 2104.04473 §2.2).

The bubble is that of 1F1B over v, for v times the messages and more activations.
"""

from __future__ import annotations

from collections.abc import Iterator

from pluribus.predict.schedules.base import Action, ActionKind, Order
from pluribus.predict.schedules.one_f_one_b import alternate


def interleaved(num_stages: int, micro_batches: int, chunks: int) -> Order:
    """The passes of each stage.

    Micro-batches go in groups of S through chunk 0, then chunk 1 …, backward in the reverse
    order of chunks; stage s runs 2(S − 1 − s) + (v − 1)S chunk forwards ahead (Megatron-LM).
    ``micro_batches`` is a multiple of ``num_stages``: a short group would deadlock.
    """

    def turns(kind: ActionKind, order: range) -> Iterator[Action]:
        for first in range(0, micro_batches, num_stages):
            for chunk in order:
                for micro_batch in range(first, first + num_stages):
                    yield Action(kind, micro_batch, chunk)

    forwards = list(turns(ActionKind.FORWARD, range(chunks)))
    backwards = list(turns(ActionKind.BACKWARD, range(chunks - 1, -1, -1)))
    return tuple(
        alternate(forwards, backwards, 2 * (num_stages - 1 - s) + (chunks - 1) * num_stages)
        for s in range(num_stages)
    )
