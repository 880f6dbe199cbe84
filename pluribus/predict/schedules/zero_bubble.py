"""ZB-H1 and ZB-H2: backward in two halves, the weight's half moved into the bubbles.

Qi et al. 2023, arXiv 2401.10241 §2. Stage s runs some forwards first and holds back the weight
gradients of some micro-batches; then it repeats gradient of the input, of a weight, forward.
"""

from __future__ import annotations

import math

from pluribus.predict.schedules.base import Action, ActionKind, Order


def zb_h1(num_stages: int, micro_batches: int) -> Order:
    """Memory of 1F1B (§2.1): S − s forwards first, s weight gradients held back."""
    return tuple(
        _passes(micro_batches, first=num_stages - s, held_back=s) for s in range(num_stages)
    )


def zb_h2(
    num_stages: int, micro_batches: int, pass_times: tuple[float, float, float, float]
) -> Order:
    """No bubble inside a stage, for up to twice the memory of 1F1B (§2.2).

    Args:
        pass_times: f, b, w and c, of a forward, the gradients of the input and of the weight,
            and a message; only their ratios matter.

    The first backward comes back to stage s after (S − 1 − s)(f + b + 2c): as many forwards fill
    the wait. Stage s begins s(f + c) later than the first and has its last gradient to pass on
    s(b + c) earlier: weight gradients held back fill that. With f = b = w and c = 0 this is the
    paper's ZB-H2, 2(S − s) − 1 forwards first and 2s held back; with profiled times it comes to
    the bubbles of its searched ZB-2p (Table 5).
    """
    forward, backward, weight, message = pass_times
    around = forward + backward + 2 * message
    return tuple(
        _passes(
            micro_batches,
            first=1 + math.ceil((num_stages - 1 - s) * around / forward),
            held_back=math.ceil(s * around / weight),
        )
        for s in range(num_stages)
    )


def _passes(micro_batches: int, first: int, held_back: int) -> tuple[Action, ...]:
    passes = [Action(ActionKind.FORWARD, m) for m in range(min(first, micro_batches))]
    for m in range(micro_batches):
        passes.append(Action(ActionKind.BACKWARD_INPUT, m))
        if m >= held_back:
            passes.append(Action(ActionKind.BACKWARD_WEIGHT, m - held_back))
        if first + m < micro_batches:
            passes.append(Action(ActionKind.FORWARD, first + m))
    oldest = max(micro_batches - held_back, 0)
    passes += [Action(ActionKind.BACKWARD_WEIGHT, m) for m in range(oldest, micro_batches)]
    return tuple(passes)
