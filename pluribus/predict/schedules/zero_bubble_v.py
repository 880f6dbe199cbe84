"""ZBV: zero bubble with the memory of 1F1B (Qi et al. 2024, arXiv 2405.15362 §4).

Each stage holds two chunks; chunk 0 runs from the first stage to the last and chunk 1 back, so
the first stage has the embedding and the head.
"""

from __future__ import annotations

from pluribus.predict.schedules.base import Action, ActionKind, Order

F, B, W = ActionKind.FORWARD, ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT


def zbv(num_stages: int, micro_batches: int) -> Order:
    """The passes of each stage; with f = b = w there is no bubble inside a stage.

    The pattern needs 2S micro-batches to be full; passes of fewer are those of 2S without the
    absent ones.
    """
    full = max(micro_batches, 2 * num_stages)
    return tuple(
        tuple(a for a in _passes(s, num_stages, full) if a.index < micro_batches)
        for s in range(num_stages)
    )


def _passes(stage: int, num_stages: int, micro_batches: int) -> list[Action]:
    passes: list[Action] = []
    next_of = {(kind, chunk): 0 for kind in (F, B, W) for chunk in (0, 1)}

    def run(times: int, *turn: tuple[ActionKind, int]) -> None:
        for _ in range(times):
            for kind, chunk in turn:
                passes.append(Action(kind, next_of[kind, chunk], chunk))
                next_of[kind, chunk] += 1

    behind = num_stages - stage  # stages from here to the turn, this one included
    run(2 * behind - 1, (F, 0))
    run(stage, (F, 1), (F, 0))
    run(behind, (F, 1), (B, 1), (W, 1))
    # The two chunks in turn, until the forwards of chunk 0 and then those of chunk 1 run out.
    run(micro_batches - next_of[F, 0], (F, 0), (B, 0), (W, 0), (F, 1), (B, 1), (W, 1))
    run(micro_batches - next_of[F, 1], (B, 0), (W, 0), (F, 1), (B, 1), (W, 1))
    # Gradients of the input first, for the stages that wait for them.
    run(stage, (B, 0), (B, 1))
    run(behind, (B, 0), (W, 0))
    for chunk in (1, 0):
        run(micro_batches - next_of[W, chunk], (W, chunk))
    return passes
