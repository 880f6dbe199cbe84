"""GPipe: every forward, then every backward (Huang et al. 2019, arXiv 1811.06965 §2.3)."""

from __future__ import annotations

from pluribus.predict.schedules.base import Action, ActionKind, Order


def gpipe(num_stages: int, micro_batches: int) -> Order:
    """The passes of each stage."""
    forwards = tuple(Action(ActionKind.FORWARD, m) for m in range(micro_batches))
    backwards = tuple(Action(ActionKind.BACKWARD, m) for m in range(micro_batches))
    return (forwards + backwards,) * num_stages
